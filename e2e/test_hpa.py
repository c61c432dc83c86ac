"""People and a HorizontalPodAutoscaler scale a service; the operator follows and never writes."""

from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import Service
from e2e.harness.waiting import until

HPA: Obj = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "assistant"},
    "spec": {
        "scaleTargetRef": {
            "apiVersion": "sloserve.io/v1alpha1", "kind": "SLOService", "name": "assistant",
        },
        "minReplicas": 2,
        "maxReplicas": 2,
    },
}  # fmt: skip
"""Without metrics it still keeps the count within its bounds, and that needs all of scale."""


def replicas(service: Service) -> int:
    """As the spec has it."""
    return int(service.object()["spec"]["replicas"])


def test_the_operator_follows_an_hpa_and_kubectl_scale(service: Service, kubectl: Kubectl) -> None:
    service.ready()
    kubectl.apply(HPA)
    until(lambda: replicas(service) == 2, "the HPA raises to its least")
    service.wait_ready()
    assert len(service.pods("replica")) == 2
    written = service.object()["metadata"]["generation"]

    kubectl("scale", service.ref, "--replicas=3")
    until(lambda: replicas(service) == 2, "the HPA lowers to its most")
    service.wait_ready()
    assert len(service.pods("replica")) == 2
    assert service.object()["metadata"]["generation"] == written + 2, "somebody else wrote spec"
    hpa = kubectl.get("hpa", "assistant")
    assert hpa is not None
    able = {c["type"]: c["status"] for c in hpa["status"]["conditions"]}
    assert able["AbleToScale"] == "True"
    assert hpa["status"]["currentReplicas"] == 2

    kubectl("delete", "hpa/assistant")
    kubectl("scale", service.ref, "--replicas=1")
    service.wait_ready()
    assert len(service.pods("replica")) == 1
    assert not [w for w in service.writers("replicas") if "operator" in w]
