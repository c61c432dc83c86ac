"""`kubectl drain` of a node that holds a replica and a gateway: no request fails."""

import pytest
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import Service
from e2e.harness.stream import Stream
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until
from e2e.harness.watching import Watch

pytestmark = pytest.mark.alone

PARTS = ("replica", "gateway")


@pytest.mark.usefixtures("whole_cluster")
def test_a_drained_node_costs_no_request(
    service: Service, cluster: Kubectl, kubectl: Kubectl, nodes: list[Obj]
) -> None:
    node = nodes[1]["metadata"]["name"]
    service.ready(replicas=2, gateway={"replicas": 2}, drain={"timeout": "3m"})
    service.until_found()
    there = {part: service.pods_on(node, part) for part in PARTS}
    assert all(len(pods) == 1 for pods in there.values()), f"pods do not spread over nodes: {there}"
    with (
        Watch(kubectl, "pdb", f"{service.name}-replica") as replica_budget,
        Watch(kubectl, "pdb", f"{service.name}-gateway") as gateway_budget,
        Traffic(service, rate=2, output_tokens=60) as traffic,
    ):
        long = [Stream(service.base_url, service.name, max_tokens=3000) for _ in range(4)]
        cluster("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=200s")
        drained_s = traffic.now_s
        assert not any(service.pods_on(node, part) for part in PARTS)
        service.wait_ready()
        until(
            lambda: all(len(service.ready_pods(part)) == 2 for part in PARTS),
            "the pods are back on another node",
        )
        traffic.more(6)
    assert [str(s) for s in long if s.wait().finish_reason != "length"] == []
    assert traffic.seen.lost == []
    assert any(r.sent_s < drained_s < traffic.seen.records[-1].sent_s for r in traffic.seen.records)
    for watch in (replica_budget, gateway_budget):
        for state in watch.seen:
            told = state["status"]
            assert told["currentHealthy"] >= told["desiredHealthy"], "the budget was broken"
