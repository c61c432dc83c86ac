"""More replicas when promises can't be kept, as many as may be and fit; fewer when it is over."""

from collections.abc import Sequence

from e2e.harness.kubectl import Obj
from e2e.harness.service import CHAT, Service
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

from sloserve.load import Record, judge

STRICT: Obj = {**CHAT, "objectivePercent": 90, "onInfeasible": "Decline"}
GPU = "nvidia.com/gpu"


def kept(records: Sequence[Record]) -> float:
    """Share of requests that kept their promise."""
    assert records
    return sum(judge(record).attained for record in records) / len(records)


def test_replicas_come_when_promises_fail_and_go_when_traffic_ends(service: Service) -> None:
    # One request at a time of 100 tokens, 5 ms each: a replica answers two a second at most.
    autoscaling = {"minReplicas": 1, "maxReplicas": 2, "targetAttainmentPercent": 90,
                   "scaleDownDelay": "5s"}  # fmt: skip
    service.ready(sloClasses=[STRICT], engine={"maxRunning": 1}, autoscaling=autoscaling)
    assert service.condition("Accepted")["reason"] == "ReplicasIgnored"
    assert service.condition("CapacityLimited")["reason"] == "Sufficient"
    with Traffic(service, rate=3.0, classes=[STRICT]) as traffic:
        told = service.until_condition("CapacityLimited", "True", "MaxReplicas")
        assert "autoscaling.maxReplicas is 2" in told["message"]
        limit = service.status()["bindingConstraint"]
        assert limit in ("TTFT", "TPOT", "KV", "Replicas")
        assert f"requests fail on {limit}" in told["message"]
        until(lambda: service.status()["readyReplicas"] == 2, "both replicas that may be are up")
        service.change(autoscaling={"maxReplicas": 4})
        # They are ready at once here; gateways see them when the cluster's DNS forgets.
        until(lambda: len(traffic.answered) >= 3, "three replicas answer")
        # Eight seconds of requests. How long it takes depends on the machine.
        until(lambda: kept(list(traffic.latest)) >= 0.9, "promises are kept again", timeout_s=180)
    assert kept([r for r in traffic.seen.records if r.sent_s < 5]) < 0.9
    # What was declined is forgotten after a minute; then the delay runs.
    until(lambda: len(service.pods("replica")) == 1, "one replica is left", timeout_s=150)
    service.until_condition("CapacityLimited", "False", "Sufficient")
    assert service.object()["spec"]["replicas"] == 1
    assert not [w for w in service.writers("replicas") if "operator" in w]


def test_replicas_that_no_node_takes_are_told_and_the_old_ones_serve_on(
    service: Service, nodes: list[Obj]
) -> None:
    service.ready()
    most = max(int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes)
    service.change(engine={"resources": {"limits": {GPU: most + 1}}})
    service.until_condition("Progressing", "False", "Unschedulable")
    told = service.until_condition("CapacityLimited", "True", "Unschedulable")
    assert f"Insufficient {GPU}" in told["message"]
    assert service.condition("Available")["reason"] == "Answering"
    assert service.complete().status_code == 200
    service.change(engine={"resources": {"limits": None}})
    service.wait_ready()
    assert service.condition("CapacityLimited")["reason"] == "Sufficient"
