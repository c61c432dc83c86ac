"""New pods for old ones under traffic: of replicas, of gateways, with another model."""

import re

from e2e.harness.kubectl import Kubectl
from e2e.harness.service import CHAT, Service
from e2e.harness.stream import Stream
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until
from e2e.harness.watching import Watch


def test_replicas_roll_and_the_promise_is_kept_meanwhile(
    service: Service, kubectl: Kubectl
) -> None:
    service.ready(replicas=2, gateway={"replicas": 2})
    service.until_found()
    before = service.pod_names("replica")
    with (
        Watch(kubectl, "deployment", f"{service.name}-replica") as watch,
        Traffic(service, rate=2, output_tokens=60) as traffic,
    ):
        traffic.more(6)
        service.change(engine={"maxRunning": 64})
        until(lambda: not before & service.pod_names("replica"), "no old replica stays")
        service.wait_ready()
        service.until_gone(before)
        traffic.more(6)
    seen = traffic.seen
    assert seen.lost == []
    assert seen.attainment("chat") >= CHAT["objectivePercent"] / 100
    after = service.pod_names("replica")
    assert len(after) == 2
    answered = set(seen.replicas)
    assert answered & before, "no old replica answered anything"
    assert answered & after, "no new replica answered anything"
    statuses = [state["status"] for state in watch.seen]
    assert min(status.get("readyReplicas", 0) for status in statuses) >= 2, "fewer than wanted"
    # What a replica set last said of itself may be a moment old: the sum can exceed what was asked.
    assert max(status["replicas"] for status in statuses) > 2, "a new one comes first"
    assert watch.seen[-1]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 1


def test_gateways_roll_and_no_request_fails(service: Service, kubectl: Kubectl) -> None:
    service.ready(replicas=1, gateway={"replicas": 2}, drain={"timeout": "3m"})
    before, replicas = service.pod_names("gateway"), service.pod_names("replica")
    with (
        Watch(kubectl, "deployment", f"{service.name}-gateway") as watch,
        Traffic(service, rate=2, output_tokens=60) as traffic,
    ):
        long = [Stream(service.base_url, service.name, max_tokens=3000) for _ in range(4)]
        overlay = {"metadata": {"annotations": {"example.org/rolled": "once"}}}
        service.change(gateway={"podTemplate": overlay})
        until(lambda: not before & service.pod_names("gateway"), "no old gateway stays")
        service.wait_ready()
        service.until_gone(before, timeout_s=240)
        traffic.more(6)
    assert [str(s) for s in long if s.wait().finish_reason != "length"] == []
    assert traffic.seen.lost == []
    assert len(service.pod_names("gateway")) == 2
    assert service.pod_names("replica") == replicas, "replicas rolled with the gateways"
    ready = [state["status"].get("readyReplicas", 0) for state in watch.seen]
    assert min(ready) >= 2, "fewer than wanted"


def test_another_model_is_served_by_new_replicas(service: Service) -> None:
    service.ready(replicas=1)
    (before,) = service.pod_names("replica")
    old = _step_s(service, before)
    with Traffic(service, rate=2, output_tokens=50) as traffic:
        traffic.more(3)
        service.change(model={"source": "builtin://sim?profile=a100"})
        service.until_condition("Ready", "False", "RollingOut", timeout_s=30)
        until(lambda: before not in service.pod_names("replica"), "the old replica goes")
        service.wait_ready()
        service.until_gone({before})
        traffic.more(3)
    (after,) = service.pod_names("replica")
    assert _step_s(service, after) > old, "an A100's steps take longer than an H200's"
    assert traffic.seen.lost == []
    assert {before, after} == set(traffic.seen.replicas)


def _step_s(service: Service, pod: str) -> float:
    """What one step takes at least on the hardware of the model that is served (seconds)."""
    url = "http://127.0.0.1:8000/metrics"
    code = f"from urllib.request import urlopen; print(urlopen({url!r}).read().decode())"
    found = re.search(
        r'sloserve_zero_load_seconds\{[^}]*"fixed"\} (\S+)', service.python(pod, code)
    )
    assert found
    return float(found[1])
