"""
A node drops off the network with a replica and a gateway on it.

Clients whose gateway was there hear nothing more, whatever anybody does; and a NodePort or a load
balancer may send new connections there until the node counts as lost. So the client of this story
talks to the gateway that is left, which is where the promise holds: within a second of silence it
stops using the lost replica, and what ran there ends with an error that says so.
"""

from typing import Any

import pytest
from e2e.harness.forward import forward
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import Service
from e2e.harness.stream import Stream
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

from sloserve.load import Ending

pytestmark = pytest.mark.alone

PARTS = ("replica", "gateway")
UNUSED_S = 1.5
"""From a replica's silence to the first request that surely goes elsewhere: 1 s, and the time its
last report was under way."""
QUICK_S = 3.0
"""A request that is sent to a replica that lives begins to be answered in this time."""


def test_only_streams_on_a_lost_node_fail_and_say_so(
    service: Service, cluster: Kubectl, kubectl: Kubectl, nodes: list[Obj], lose_node: Any
) -> None:
    names = [node["metadata"]["name"] for node in nodes]
    service.ready(replicas=2, gateway={"replicas": 2}, drain={"timeout": "5s"})
    service.until_found()
    where = {name: service.pods_on(name, "replica") for name in names}
    assert sorted(map(len, where.values()))[-2:] == [1, 1], f"replicas do not spread: {where}"
    busiest = Stream(service.base_url, service.name, max_tokens=2).replica
    node = next(name for name, pods in where.items() if busiest in pods)
    (left,) = service.pod_names("gateway") - service.pods_on(node, "gateway")
    gone = service.pods_on(node, *PARTS)
    with (
        forward(kubectl, left, 8080) as url,
        Traffic(service, rate=2, output_tokens=60, base_url=f"{url}/v1") as traffic,
    ):
        streams = [Stream(url, service.name, max_tokens=8000) for _ in range(2)]
        long = [stream for stream in streams if stream.replica == busiest]
        assert long, "gateways fill one replica before the next, and yet nothing runs there"
        before_s = traffic.now_s
        lose_node(node)
        after_s = traffic.now_s
        until(lambda: unready(cluster, node), "the node counts as lost", timeout_s=90)
        until(
            lambda: all(len(service.ready_pods(part) - gone) == 2 for part in PARTS),
            "its pods are replaced elsewhere",
            timeout_s=120,
        )
        traffic.more(4)
    for stream in long:
        stream.wait()
        assert stream.error, str(stream)
        assert stream.error["code"] == "ReplicaLost", str(stream)
        assert stream.finish_reason == "error", str(stream)
    for record in traffic.seen.records:
        if record.ending is Ending.FINISHED:
            continue
        told = f"{record.ending} on {record.replica} after {record.error}"
        assert record.replica == busiest, told
        assert record.sent_s < after_s + UNUSED_S, told
        assert record.ended_s > before_s, told
        assert "finish_reason error" in record.error, told
    later = [r for r in traffic.seen.records if r.sent_s > after_s + UNUSED_S]
    assert len(later) >= 60, "too little traffic after the loss"
    for record in later:
        waited_s = record.emissions[0].at_s - record.sent_s
        assert waited_s < QUICK_S, f"sent {record.sent_s - after_s:.1f} s after, {waited_s:.1f} s"
    lose_node.back(node)
    cluster("wait", "--for=condition=Ready", f"node/{node}", "--timeout=60s")
    service.until_gone(gone)
    service.wait_ready()
    assert service.complete().status_code == 200


def unready(cluster: Kubectl, name: str) -> bool:
    """Whether the cluster knows that the node is lost."""
    node = cluster.get("node", name)
    assert node
    ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")
    return bool(ready["status"] != "True")
