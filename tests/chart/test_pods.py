"""The operator's pod: restricted, told everything it must know, and open to few."""

from collections.abc import Iterable
from typing import Any

import pytest

Obj = dict[str, Any]
GATEWAY = {
    "app.kubernetes.io/managed-by": "sloserve-operator",
    "app.kubernetes.io/component": "gateway",
    "app.kubernetes.io/instance": "assistant",
}
REPLICA = GATEWAY | {"app.kubernetes.io/component": "replica"}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}


def only(objects: list[Obj], kind: str) -> Obj:
    (found,) = [obj for obj in objects if obj["kind"] == kind]
    return found


def pod_of(objects: list[Obj]) -> Obj:
    template: Obj = only(objects, "Deployment")["spec"]["template"]
    return template


def env_of(objects: list[Obj]) -> dict[str, str]:
    env = pod_of(objects)["spec"]["containers"][0]["env"]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in env}


def test_every_container_is_restricted(objects: list[Obj]) -> None:
    for obj in objects:
        if obj["kind"] not in ("Deployment", "Job", "DaemonSet", "StatefulSet", "Pod"):
            continue
        spec = obj["spec"]["template"]["spec"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True,  # no fixed user id: the image has one, platforms may choose
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all("emptyDir" in volume for volume in spec["volumes"])
        containers = [*spec["containers"], *spec.get("initContainers", [])]
        for container in containers:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["runAsNonRoot"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert "requests" in container["resources"]


def test_two_versions_never_run_at_the_same_time(objects: list[Obj]) -> None:
    assert only(objects, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_two_operators_are_spread_and_not_evicted_together(helm: Any) -> None:
    objects = helm.objects({"operator": {"replicas": 2}})
    (spread,) = pod_of(objects)["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    budget = only(objects, "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    assert "PodDisruptionBudget" not in [o["kind"] for o in helm.objects()]


def test_selectors_find_the_pod(objects: list[Obj]) -> None:
    labels = pod_of(objects)["metadata"]["labels"]
    selectors = [
        obj["spec"][key] for obj in objects for key in ("selector", "podSelector")
        if obj["kind"] not in ("ServiceMonitor",) and key in obj.get("spec", {})
    ]  # fmt: skip
    assert len(selectors) >= 3
    for selector in selectors:
        assert (selector.get("matchLabels") or selector).items() <= labels.items()


def test_images_come_from_the_registry_that_the_site_has(helm: Any, variants: Any) -> None:
    objects = helm.objects(variants["everything"])
    spec, env = pod_of(objects)["spec"], env_of(objects)
    where = "registry.example.com/llm"
    assert spec["containers"][0]["image"] == f"{where}/sloserve-operator:1.2.3"
    assert env["SLOSERVE_ENGINE_CPU_IMAGE"] == f"{where}/sloserve-engine:1.2.3"
    assert env["SLOSERVE_ENGINE_CUDA_IMAGE"] == f"{where}/sloserve-engine-cuda:1.2.3"
    assert env["SLOSERVE_GATEWAY_IMAGE"].startswith(f"{where}/sloserve-gateway@sha256:")
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert env["SLOSERVE_IMAGE_PULL_SECRETS"] == "registry"
    plain = helm.objects({"images": {"registry": ""}})
    assert pod_of(plain)["spec"]["containers"][0]["image"] == "sloserve-operator:0.1.0"


def test_the_operator_understands_what_the_chart_tells_it(helm: Any, variants: Any) -> None:
    settings = pytest.importorskip("sloserve_operator.settings", reason="no operator here")
    env = env_of(helm.objects(variants["namespaced"]))
    told = env | {"SLOSERVE_NAMESPACE": "sloserve-system", "SLOSERVE_IDENTITY": "uid"}
    read = settings.from_environment(told)
    assert read.watched == ("team-a", "team-b")
    assert (read.selector, read.lease, read.listen) == ("tier=gold", "sloserve-operator", ":8081")
    assert read.images.engine_cpu == "localhost/sloserve-engine:0.1.0"
    assert (read.fs_group, read.network_policies) == (10001, True)
    assert read.gateway_requests == settings.OperatorSettings().gateway_requests
    assert read.replica_requests == settings.OperatorSettings().replica_requests
    env = env_of(helm.objects(variants["everything"]))
    read = settings.from_environment(env | {"SLOSERVE_NAMESPACE": "x", "SLOSERVE_IDENTITY": "y"})
    assert (read.fs_group, read.network_policies) == (None, False)
    assert read.replica_requests == {"cpu": "2", "memory": "1Gi"}
    assert read.gateway_requests == {}
    assert read.monitor_labels == {"release": "prometheus", "team": "llm"}
    assert read.runbook_url == "https://wiki.example.com/runbook"
    assert read.prometheus_labels == PROMETHEUS
    assert (read.images.pull_policy, read.images.pull_secrets) == ("Always", ("registry",))
    known = {*settings.ENVIRONMENT, *settings.IMAGES}
    unknown = {name for name in env if name.startswith("SLOSERVE_")} - known
    assert unknown == {
        "SLOSERVE_WATCH_NAMESPACES",
        "SLOSERVE_IMAGE_PULL_SECRETS",
        "SLOSERVE_FS_GROUP",
        "SLOSERVE_NETWORK_POLICIES",
        "SLOSERVE_PROMETHEUS_LABELS",
        "SLOSERVE_MONITOR_LABELS",
        "SLOSERVE_REPLICA_REQUESTS",
        "SLOSERVE_GATEWAY_REQUESTS",
    }  # read by name in from_environment: their effect is asserted above


def matches(selector: Obj, labels: dict[str, str]) -> bool:
    """A label selector."""
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    return all(
        labels.get(e["key"]) in e["values"] and e["operator"] == "In"
        for e in selector.get("matchExpressions") or ()
    )


def allows(
    rules: Iterable[Obj], side: str, *, pod: dict[str, str] | None, namespace: str, port: int,
    protocol: str = "TCP",
) -> bool:  # fmt: skip
    """Whether a NetworkPolicy lets a flow through; `pod` None: an address outside the cluster."""
    place = {"kubernetes.io/metadata.name": namespace}
    for rule in rules:
        ports = rule.get("ports")
        if ports and not any((p["port"], p["protocol"]) == (port, protocol) for p in ports):
            continue
        if side not in rule:
            return True
        for peer in rule[side]:
            if pod is None or "ipBlock" in peer:
                continue
            if matches(peer.get("namespaceSelector", {}), place) and matches(
                peer.get("podSelector", {}), pod
            ):
                return True
    return False


def test_flows_are_those_of_the_table_and_no_others(helm: Any) -> None:
    policy = only(helm.objects(), "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}

    def may_reach(pod: dict[str, str] | None, port: int, protocol: str = "TCP") -> bool:
        return allows(
            policy["egress"], "to", pod=pod, namespace="team-a", port=port, protocol=protocol
        )

    def reached_by(pod: dict[str, str] | None, port: int) -> bool:
        return allows(policy["ingress"], "from", pod=pod, namespace="monitoring", port=port)

    assert may_reach(GATEWAY, 9090)
    assert not may_reach(GATEWAY, 8080)
    assert not may_reach(REPLICA, 8000)
    assert not may_reach(REPLICA, 9090)
    assert may_reach({}, 53, "UDP")
    assert may_reach(None, 6443)
    assert may_reach(None, 443)
    assert not may_reach(None, 80)
    assert reached_by(PROMETHEUS, 8081)
    assert not reached_by(PROMETHEUS, 8080)
    assert not reached_by({"app": "anything"}, 8081)
    assert not reached_by(None, 8081)


def test_with_namespaces_only_their_gateways_are_reached(helm: Any, variants: Any) -> None:
    policy = only(helm.objects(variants["namespaced"]), "NetworkPolicy")["spec"]
    for namespace, reached in (("team-a", True), ("team-b", True), ("team-c", False)):
        assert (
            allows(policy["egress"], "to", pod=GATEWAY, namespace=namespace, port=9090) is reached
        )
    assert not allows(policy["egress"], "to", pod=None, namespace="", port=6443)
    assert allows(policy["egress"], "to", pod=None, namespace="", port=8443)


def test_services_let_the_operator_in_by_the_labels_it_has(helm: Any) -> None:
    objects = helm.objects()
    assert pod_of(objects)["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    env = pod_of(objects)["spec"]["containers"][0]["env"]
    (home,) = [e["valueFrom"] for e in env if e["name"] == "SLOSERVE_NAMESPACE"]
    assert home == {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
