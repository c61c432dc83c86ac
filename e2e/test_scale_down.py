"""Fewer pods under open streams: the least loaded replicas go first, and nobody notices."""

import time
from contextlib import ExitStack

from e2e.harness.forward import forward
from e2e.harness.kubectl import Kubectl
from e2e.harness.service import Service
from e2e.harness.stream import Stream
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

COST = "controller.kubernetes.io/pod-deletion-cost"
OPERATOR_LOOKS_S = 10
"""The operator asks gateways so often how loaded the replicas are."""
LOADS = (1, 4, 14)
"""Long answers on each replica, so that it is clear who is the least loaded."""
LONG_TOKENS = 5500
"""An answer that is open before, while and after its pod is told to go: 28 s, and more where the
machine is busy."""


def test_the_least_loaded_replicas_go_first_and_no_stream_is_lost(
    service: Service, kubectl: Kubectl
) -> None:
    service.ready(replicas=3, gateway={"replicas": 2}, drain={"timeout": "5m"})
    pods = sorted(service.pod_names("replica"))
    gateway = min(service.pod_names("gateway"))
    service.until_found()
    with ExitStack() as stack, Traffic(service, rate=1, output_tokens=60) as traffic:
        answers = []
        for pod, load in zip(pods, LOADS, strict=True):
            url = stack.enter_context(forward(kubectl, pod, 8000))
            answers += [
                Stream(url, service.name, max_tokens=LONG_TOKENS, streamed=number == 0)
                for number in range(load)
            ]

        def loaded() -> bool:
            seen = service.replicas_seen(gateway)
            return all(seen[pod]["running"] >= n for pod, n in zip(pods, LOADS, strict=True))

        until(loaded, "gateways see the load", timeout_s=60)
        time.sleep(OPERATOR_LOOKS_S + 2)
        service.change(replicas=1)
        until(lambda: len(service.pods("replica")) == 1, "two replicas are on their way out")
        costs = {
            pod["metadata"]["name"]: int(pod["metadata"]["annotations"][COST])
            for pod in service.all_pods("replica")
        }
        still_open = [answer for answer in answers if answer.ended_s is None]
        service.until_gone(pods[:2], timeout_s=300)
        traffic.more(4)
        for answer in answers:
            answer.wait(timeout_s=240)
    assert len(still_open) == sum(LOADS), "too short: nothing was open when the pods went"
    assert [str(a) for a in answers if a.finish_reason != "length"] == []
    assert traffic.seen.lost == []
    assert service.pod_names("replica") == {pods[2]}
    assert costs.keys() == set(pods), "pods went before all costs were told"
    assert costs[pods[2]] == max(costs.values()) >= LOADS[2]


def test_gateways_go_without_losing_a_stream(service: Service) -> None:
    service.ready(gateway={"replicas": 2}, drain={"timeout": "3m"})
    before = service.pod_names("gateway")

    def both_busy() -> bool:
        return all(service.gateway_report(pod)["inflight"] for pod in before)

    with Traffic(service, rate=2, output_tokens=60) as traffic:
        long = [Stream(service.base_url, service.name, max_tokens=3000) for _ in range(6)]
        assert both_busy(), "streams run through both gateways"
        service.change(gateway={"replicas": 1})
        until(lambda: len(service.pods("gateway")) == 1, "a gateway is on its way out")
        service.until_gone(before - service.pod_names("gateway"), timeout_s=240)
        traffic.more(8)
    assert [str(s) for s in long if s.wait().finish_reason != "length"] == []
    assert traffic.seen.lost == []
    assert len(traffic.seen.records) >= 20
