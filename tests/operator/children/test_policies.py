"""Who may talk to the pods of a service, and to whom they may."""

from collections.abc import Callable

import pytest

from sloserve_operator.api import Obj, Ref

Children = dict[Ref, Obj]


def allows(policy: Obj, direction: str, *, port: int, protocol: str, peer: Obj | None) -> bool:
    """Whether a policy lets this flow through; `peer`: labels of a pod and of its namespace."""
    for rule in policy["spec"][direction]:
        ports = rule.get("ports")
        if ports and not any(p["port"] == port and p["protocol"] == protocol for p in ports):
            continue
        peers = rule.get("from" if direction == "ingress" else "to")
        if not peers or (peer is not None and any(_matches(entry, peer) for entry in peers)):
            return True
    return False


def _matches(entry: Obj, peer: Obj) -> bool:
    pods = (entry.get("podSelector") or {}).get("matchLabels") or {}
    if not pods.items() <= peer["pod"].items():
        return False
    if "namespaceSelector" not in entry:
        return bool(peer["namespace"].get("kubernetes.io/metadata.name") == "team")
    wanted = entry["namespaceSelector"].get("matchLabels") or {}
    return bool(wanted.items() <= peer["namespace"].items())


def peer(namespace: str, **labels: str) -> Obj:
    dotted = {f"app.kubernetes.io/{k.replace('_', '-')}": v for k, v in labels.items()}
    return {"namespace": {"kubernetes.io/metadata.name": namespace}, "pod": dotted}


GATEWAY_POD = peer("team", **{"instance": "chat", "component": "gateway",
                              "managed_by": "sloserve-operator"})  # fmt: skip
REPLICA_POD = peer("team", **{"instance": "chat", "component": "replica",
                              "managed_by": "sloserve-operator"})  # fmt: skip
FLOWS = [
    ("gateway", "ingress", 8080, peer("web", name="browser"), True),
    ("gateway", "ingress", 9090, peer("web", name="browser"), False),
    ("gateway", "ingress", 9090, peer("sloserve-system", component="operator"), True),
    ("gateway", "ingress", 9090, peer("team", component="operator"), False),
    ("gateway", "ingress", 9090, peer("monitoring", name="prometheus"), True),
    ("gateway", "egress", 8000, REPLICA_POD, True),
    ("gateway", "egress", 53, peer("kube-system", name="dns"), True),
    ("gateway", "egress", 443, peer("web", name="anything"), False),
    ("replica", "ingress", 8000, GATEWAY_POD, True),
    ("replica", "ingress", 8000, peer("other", **{"instance": "chat", "component": "gateway",
                                                  "managed_by": "sloserve-operator"}), False),
    ("replica", "ingress", 8000, peer("web", name="browser"), False),
    ("replica", "ingress", 8000, peer("monitoring", name="prometheus"), True),
    ("replica", "egress", 53, peer("kube-system", name="dns"), True),
    ("replica", "egress", 443, None, False),
]  # fmt: skip


@pytest.mark.parametrize(("part", "direction", "port", "other", "allowed"), FLOWS)
def test_network_policies_let_through_the_table_of_flows_and_no_more(
    children: Callable[..., Children],
    part: str,
    direction: str,
    port: int,
    other: Obj | None,
    allowed: bool,
) -> None:
    policy = children()[Ref("NetworkPolicy", f"chat-{part}")]
    assert allows(policy, direction, port=port, protocol="TCP", peer=other) is allowed
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_replicas_that_download_reach_the_hub_and_a_mirror(
    children: Callable[..., Children],
) -> None:
    env = [{"name": "HF_ENDPOINT", "value": "http://hub.team.svc:8090"}]
    overlay = {"spec": {"containers": [{"name": "replica", "env": env}]}}
    made = children(model={"source": "hf://org/model"}, engine={"podTemplate": overlay})
    policy = made[Ref("NetworkPolicy", "chat-replica")]
    for port, allowed in ((443, True), (80, True), (8090, True), (6443, False)):
        assert allows(policy, "egress", port=port, protocol="TCP", peer=None) is allowed
