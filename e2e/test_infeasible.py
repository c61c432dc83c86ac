"""When no replica can promise, the class decides: served without a promise, or refused in time."""

from concurrent.futures import ThreadPoolExecutor

import httpx
from e2e.harness.saturation import BULK, saturated
from e2e.harness.service import Service
from e2e.harness.waiting import until

PATIENT = {
    "name": "patient",
    "ttft": {"target": "500ms"},
    "tpot": "100ms",
    "objectivePercent": 95,
    "onInfeasible": "Degrade",
}
STRICT = {**PATIENT, "name": "strict", "onInfeasible": "Decline"}
MAX_RUNNING = 4


def test_a_class_is_degraded_or_declined_as_it_says_and_told_why(service: Service) -> None:
    service.ready(
        replicas=2, sloClasses=[PATIENT, STRICT, BULK], engine={"maxRunning": MAX_RUNNING}
    )
    for slo_class in ("patient", "strict"):
        assert ask(service, slo_class).headers["x-slo-decision"] == "admitted"

    replicas = service.pod_names("replica")
    with ThreadPoolExecutor() as pool:
        with saturated(service, *replicas, num_requests=MAX_RUNNING):
            degraded = pool.submit(ask, service, "patient")
            declined = ask(service, "strict")
            assert declined.status_code == 429
            assert declined.headers["x-slo-decision"] == "declined"
            assert declined.headers["x-slo-reason"] == "TTFT"
            assert int(declined.headers["retry-after"]) >= 1
            assert declined.json()["error"]["code"] == "TTFT"
            assert "first token" in declined.json()["error"]["message"]
            binds = until(
                lambda: service.status().get("bindingConstraint") != "None",
                "the status says what binds",
                timeout_s=60,
            )
            assert binds
            assert service.status()["bindingConstraint"] == "TTFT"
        served = degraded.result(timeout=60)
    assert served.status_code == 200, served.text
    assert served.headers["x-slo-decision"] == "degraded"
    assert served.headers["x-slo-reason"] == "TTFT"
    assert served.json()["usage"]["completion_tokens"] == 8
    assert ask(service, "strict").headers["x-slo-decision"] == "admitted"


def ask(service: Service, slo_class: str) -> httpx.Response:
    return service.complete(headers={"x-slo-class": slo_class}, timeout_s=120)
