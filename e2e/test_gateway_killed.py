"""
kill -9 of one of two gateways.

Its open connections break. The Service sends new ones there until the pod counts as not ready, a
few seconds; so beside the clients of the Service there is one that talks to the other gateway.
"""

from e2e.harness.forward import forward
from e2e.harness.kubectl import Kubectl
from e2e.harness.service import Service
from e2e.harness.stream import Stream
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

from sloserve.load import Ending

SHARED = {"podTemplate": {"spec": {"shareProcessNamespace": True}}}
NOTICED_S = 6.0
"""A dead gateway gets no new connections after this time."""


def test_a_killed_gateway_takes_only_its_own_connections_with_it(
    service: Service, kubectl: Kubectl
) -> None:
    service.ready(replicas=1, gateway={"replicas": 2, **SHARED})
    killed, other = sorted(service.pod_names("gateway"))
    (replica,) = service.pod_names("replica")
    service.until_found()
    with (
        forward(kubectl, killed, 8080) as url_of_killed,
        forward(kubectl, other, 8080) as url,
        Traffic(service, rate=1, output_tokens=60, base_url=f"{url}/v1") as direct,
        Traffic(service, rate=1, output_tokens=60) as traffic,
    ):
        lost = [Stream(url_of_killed, service.name, max_tokens=8000) for _ in range(2)]
        kept = Stream(url, service.name, max_tokens=1500)
        traffic.more(2)
        service.kill(killed)
        killed_s = traffic.now_s
        until(lambda: service.restarts("gateway")[killed] == 1, "the kubelet starts it again")
        until(lambda: killed in service.ready_pods("gateway"), "it is ready again")
        traffic.seconds(max(0.0, killed_s + NOTICED_S + 4 - traffic.now_s))
        assert kept.wait(timeout_s=300).finish_reason == "length", str(kept)
    for stream in lost:
        assert stream.wait().finish_reason is None, str(stream)
        assert stream.failure, f"it broke without a word: {stream}"
    assert direct.seen.lost == [], "the other gateway lost something"
    for record in traffic.seen.records:
        if record.ending is Ending.FINISHED:
            continue
        assert record.sent_s < killed_s + NOTICED_S, f"{record.sent_s:.1f}: {record.error}"
        assert record.ended_s > killed_s - 5, record.error
        assert record.error, "a request failed without a word"
    later = [r for r in traffic.seen.records if r.sent_s > killed_s + NOTICED_S]
    assert len(later) >= 2

    def freed() -> bool:
        seen = service.replicas_seen(other)[replica]
        return bool(seen["running"] == 0 and seen["freeBlocks"] == seen["totalBlocks"])

    until(freed, "what the dead gateway had asked for is worked on no longer", timeout_s=30)
    assert service.complete().status_code == 200
