"""Objects of a child's name that belong to somebody else are left alone, and that is told."""

from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import Service

SERVICE: Obj = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "assistant-gateway", "labels": {"team": "web"}},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 81}]},
}
DEPLOYMENT: Obj = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "assistant-replica"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "localhost/web"}]},
        },
    },
}


def test_a_foreign_object_is_never_touched_and_the_service_waits_for_its_name(
    service: Service, kubectl: Kubectl
) -> None:
    kubectl.apply(SERVICE, DEPLOYMENT)
    before = foreign(kubectl)
    service.apply()
    told = service.until_condition("Accepted", "False", "NameConflict")
    assert "Deployment assistant-replica" in told["message"] or (
        "Service assistant-gateway" in told["message"]
    )
    assert service.condition("Ready")["reason"] == "NotAccepted"
    service.change(gateway={"maxHops": 2})  # another look changes nothing
    service.until_condition("Accepted", "False", "NameConflict")
    assert foreign(kubectl) == before

    kubectl("delete", "service/assistant-gateway", "deployment/assistant-replica")
    service.wait_ready()  # looked at again every 10 s
    assert service.complete().status_code == 200


def foreign(kubectl: Kubectl) -> list[Obj | None]:
    """What a person would see of both."""
    found = [kubectl.get("service", "assistant-gateway")]
    found += [kubectl.get("deployment", "assistant-replica")]
    return [
        {"labels": o["metadata"].get("labels"), "uid": o["metadata"]["uid"], "spec": o["spec"]}
        for o in found
        if o
    ]
