"""kill -9 of a replica in the middle of its streams."""

from e2e.harness.kubectl import Obj
from e2e.harness.service import Service
from e2e.harness.stream import Stream
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

from sloserve.load import Ending

SHARED = {"podTemplate": {"spec": {"shareProcessNamespace": True}}}


def test_streams_of_a_killed_replica_end_with_an_error_and_the_rest_goes_on(
    service: Service,
) -> None:
    service.ready(replicas=2, engine=SHARED)
    (gateway,) = service.pod_names("gateway")
    pods = service.pod_names("replica")
    service.until_found()
    at_rest = {name: capacity(seen) for name, seen in service.replicas_seen(gateway).items()}
    with Traffic(service, rate=1, output_tokens=60) as traffic:
        traffic.more(2)
        long = [Stream(service.base_url, service.name, max_tokens=8000) for _ in range(2)]
        busiest = until(lambda: busy(service, gateway), "streams run on a replica", pause_s=0.1)
        before_s = traffic.now_s
        service.kill(busiest)
        after_s = traffic.now_s
        until(lambda: service.restarts("replica")[busiest] == 1, "the kubelet starts it again")
        until(lambda: busiest in service.ready_pods("replica"), "it is ready again")
        traffic.more(4)
    for stream in long:
        assert stream.wait().error, str(stream)
        assert stream.error["code"] == "ReplicaLost", str(stream)
        assert stream.finish_reason == "error", str(stream)
    for record in traffic.seen.records:
        if record.ending is Ending.FINISHED:
            continue
        told = f"{record.ending} on {record.replica}: {record.error}"
        assert record.replica == busiest, told
        assert record.sent_s < after_s, told
        assert record.ended_s > before_s, told
        assert "finish_reason error" in record.error, told
    assert [r for r in traffic.seen.records if r.sent_s > after_s], "no request after the kill"
    until(
        lambda: {n: capacity(s) for n, s in service.replicas_seen(gateway).items()} == at_rest,
        "all blocks are free again, and the frontier is open",
        timeout_s=60,
    )
    assert service.pod_names("replica") == pods
    assert service.status()["ready"] == "2/2"


def busy(service: Service, gateway: str) -> str:
    """The replica where most streams run; "" when nothing runs."""
    loads = {n: int(r.get("running", 0)) for n, r in service.replicas_seen(gateway).items()}
    return max((n for n in loads if loads[n] > 1), key=loads.__getitem__, default="")


def capacity(seen: Obj) -> tuple[object, ...]:
    """What a replica has and can take, as its gateway knows it."""
    frontier = seen.get("frontier") or {}
    is_open = {name: f["maxTokens"] >= f["minTokens"] for name, f in frontier.items()}
    return seen["state"], seen.get("running"), seen.get("freeBlocks"), seen.get("waiting"), is_open
