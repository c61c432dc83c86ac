"""The series of a replica: there for every class from the start, and never made by a client."""

from dataclasses import replace
from typing import Any

from sloserve.slo import SloClass, Stage, Ttft

SAID = "user-4711"


def test_a_class_added_at_run_time_is_counted_from_zero(running: Any) -> None:
    spec = running.replica.spec
    gold = SloClass("gold", Ttft(target_s=9.0), (Stage("decode", 1.0),))
    assert 'slo_class="gold"' not in running.client.get("/metrics").text
    running.on_loop(lambda: running.replica.apply(replace(spec, classes=(*spec.classes, gold))))
    text = running.client.get("/metrics").text
    labels = 'model="sim",service="assistant",slo_class="gold"'
    assert f"sloserve_replica_slo_requests_total{{{labels}}} 0.0" in text
    kept = f'sloserve_replica_slo_attained_total{{model="sim",promise="all",{labels[12:]}}} 0.0'
    assert kept in text
    assert 'sloserve_slack_seconds_bucket{le="0.0",slo_class="gold"} 0.0' in text
    assert 'sloserve_slo_objective_ratio{service="assistant",slo_class="gold"} 0.99' in text


def test_no_client_can_make_a_series(running: Any) -> None:
    for name in ("x-slo-class", "x-session-id", "x-request-id", "x-slo-ttft-ms"):
        running.post("/v1/completions", json={"prompt": "x"}, headers={name: SAID})
    running.post("/v1/completions", json={"prompt": "x", "model": SAID})
    running.post("/v1/completions", json={"prompt": "x", "user": SAID, "max_tokens": 1})
    running.post(f"/v1/{SAID}", json={})
    assert SAID not in running.client.get("/metrics").text


def test_what_the_planner_has_learned_of_the_machine_is_told(running: Any) -> None:
    running.post("/v1/completions", json={"prompt": "x", "max_tokens": 4})
    learned = running.on_loop(lambda: running.replica.served.engine.scheduler.correction.ratio)
    assert running.metric("sloserve_step_correction_ratio") == learned != 0
