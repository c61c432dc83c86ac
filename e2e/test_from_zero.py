"""From zero and back: a request waits at the gateway until the replica it called for is up."""

import time
from concurrent.futures import ThreadPoolExecutor

from e2e.harness.service import Service
from e2e.harness.waiting import until

AUTOSCALING = {"minReplicas": 0, "maxReplicas": 1, "scaleDownDelay": "5s"}


def test_a_request_wakes_a_service_that_sleeps_and_it_falls_asleep_again(service: Service) -> None:
    service.ready(autoscaling=AUTOSCALING, gateway={"holdTimeout": "2m"})
    assert service.condition("Ready")["reason"] == "Idle"
    assert service.condition("Available")["status"] == "True"
    assert service.condition("Available")["reason"] == "Idle"
    assert service.pods("replica") == []

    with ThreadPoolExecutor(1) as pool:
        sent_s = time.monotonic()
        coming = pool.submit(service.complete, timeout_s=120)
        service.until_condition("Available", "True", "Holding")
        assert not coming.done()
        answer = coming.result(timeout=120)
        print(f"from zero to an answer: {time.monotonic() - sent_s:.1f} s")
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 8
    service.until_condition("Available", "True", "Answering")
    assert service.complete().status_code == 200

    # A minute without a request, and the delay.
    until(lambda: service.pods("replica") == [], "no replica is left", timeout_s=150)
    service.until_condition("Available", "True", "Idle")
    assert service.condition("Ready")["reason"] == "Idle"
