"""SIGTERM, the one signal to drain: what a replica and a gateway do until their time is over."""

import time

import httpx
from e2e.harness.forward import forward
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import Service
from e2e.harness.stream import Stream
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

DRAIN_S = 10
SHORT, LONG = 250, 8000
"""Tokens of an answer that ends within the drain (1.3 s; more on a busy machine), and of one that
does not (40 s)."""
SLACK_S = 6
"""For signals, sockets and a busy machine."""


def test_a_replica_refuses_new_requests_and_ends_long_streams_with_an_error(
    service: Service, kubectl: Kubectl
) -> None:
    service.ready(replicas=2, drain={"timeout": f"{DRAIN_S}s"})
    pod = min(service.pod_names("replica"))
    with forward(kubectl, pod, 8000) as url, Traffic(service, rate=2, output_tokens=50) as traffic:
        traffic.more(3)
        short = Stream(url, service.name, max_tokens=SHORT)
        long = Stream(url, service.name, max_tokens=LONG)
        service.tell_to_stop(pod)
        told_s = time.monotonic()
        refused = ask(url, service.name)
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "Draining"
        assert refused.headers["x-slo-reason"] == "Draining"
        assert int(refused.headers["retry-after"]) >= 1
        short.wait()
        long.wait()
        until(lambda: restarted(service, pod), "its container is started again")
        service.wait_ready()
        traffic.more(3)
    assert short.finish_reason == "length", str(short)
    assert long.finish_reason == "error", str(long)
    assert long.error, str(long)
    assert long.error["code"] == "Draining"
    assert long.ended_s is not None
    assert DRAIN_S - 1 < long.ended_s - told_s < DRAIN_S + SLACK_S
    assert ended_with(service, pod) == 0
    assert traffic.seen.lost == [], "gateways went on with the other replica"


def test_a_gateway_finishes_short_streams_and_ends_long_ones_with_an_error(
    service: Service, kubectl: Kubectl
) -> None:
    service.ready(replicas=1, drain={"timeout": f"{DRAIN_S}s"})
    (pod,) = service.pod_names("gateway")
    until(lambda: service.complete().status_code == 200, "it answers")
    with forward(kubectl, pod, 8080) as url, httpx.Client(timeout=30) as kept_alive:
        assert ask(url, service.name, kept_alive).headers.get("connection") != "close"
        short = Stream(url, service.name, max_tokens=SHORT)
        long = Stream(url, service.name, max_tokens=LONG)
        service.tell_to_stop(pod)
        told_s = time.monotonic()
        answer = ask(url, service.name, kept_alive)
        assert answer.status_code == 200, answer.text
        assert answer.headers["connection"] == "close"
        short.wait()
        long.wait()
    until(lambda: restarted(service, pod), "its container is started again")
    assert short.finish_reason == "length", str(short)
    assert long.finish_reason == "error", str(long)
    assert long.error, str(long)
    assert long.error["code"] == "Draining"
    assert long.ended_s is not None
    assert DRAIN_S - 1 < long.ended_s - told_s < DRAIN_S + SLACK_S
    assert ended_with(service, pod) == 0
    service.wait_ready()
    assert service.complete().status_code == 200


def ask(url: str, model: str, client: httpx.Client | None = None) -> httpx.Response:
    """A short answer, not streamed."""
    body = {"model": model, "prompt": [100, 101], "max_tokens": 2}
    post = client.post if client is not None else httpx.post
    return post(f"{url}/v1/completions", json=body)


def container(service: Service, pod: str) -> Obj:
    """The state of a pod's container."""
    found = service.kubectl.get("pod", pod)
    assert found
    status: Obj = found["status"]["containerStatuses"][0]
    return status


def restarted(service: Service, pod: str) -> bool:
    """Whether its process is a new one, and ready."""
    status = container(service, pod)
    return bool(status["restartCount"] == 1 and status["ready"])


def ended_with(service: Service, pod: str) -> int:
    """The exit code of the process before."""
    return int(container(service, pod)["lastState"]["terminated"]["exitCode"])
