"""Rules evaluate, and alerts come and go, in a Prometheus that scrapes a service."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bench import alert
from bench.prometheus import Prometheus, running

from sloserve.rules.burn import FAST_BURN
from sloserve.rules.serving import STEP_MODEL_OFF

pytestmark = pytest.mark.slow
LONGEST_WINDOW_S = 90.0
"""Of a page, in a hurry: the second rung looks back 90 minutes."""


def test_every_rule_evaluates_and_every_recording_rule_records(
    prometheus: Prometheus, eventually: Any, answered: Any
) -> None:
    def health() -> dict[str, str]:
        return {r["query"]: r.get("lastError") or r["health"] for r in prometheus.rules()}

    eventually(lambda: set(health().values()) == {"ok"}, lambda: json.dumps(health(), indent=1))
    recorded = [rule for rule in prometheus.rules() if rule["type"] == "recording"]
    assert len(recorded) > 20
    selectors = [
        f"{rule['name']}{{{', '.join(f'{k}={json.dumps(v)}' for k, v in rule['labels'].items())}}}"
        for rule in recorded
    ]
    answered({s: lambda s=s: prometheus.instant(s) for s in selectors})


def test_a_class_that_nobody_can_keep_pages_and_the_page_says_what_binds(
    prometheus: Prometheus, eventually: Any
) -> None:
    eventually(lambda: prometheus.firing(FAST_BURN), lambda: FAST_BURN)
    (page,) = prometheus.firing(FAST_BURN)
    assert page["labels"]["slo_class"] == "hopeless"
    assert page["annotations"]["constraint"] in ("TTFT", "TPOT")
    assert re.search(r"^100% of the requests missed", page["annotations"]["description"])


def test_a_profile_of_another_machine_is_noticed_at_every_replica(
    hurried: Prometheus, eventually: Any
) -> None:
    def replicas() -> set[str]:
        return {found["labels"]["replica"] for found in hurried.firing(STEP_MODEL_OFF)}

    eventually(lambda: len(replicas()) == 2, lambda: f"{STEP_MODEL_OFF} fires for {replicas()}")


def test_a_page_comes_while_the_service_is_slow_and_goes_when_that_is_over(
    service: alert.Service, hurried: Prometheus, eventually: Any
) -> None:
    kept = 'sloserve_slo_attained_total{slo_class="chat", promise="all"}'
    healthy = f"sum(increase({kept}[15s])) > 60"
    eventually(lambda: hurried.instant(healthy), lambda: "15 s of health")
    assert not hurried.firing(FAST_BURN, slo_class="chat")
    played = alert.play(
        service,
        hurried,
        FAST_BURN,
        duty=alert.HARSH,
        tell=print,
        patience_s=120.0,
        slo_class="chat",
    )
    assert played.fired_after_s < LONGEST_WINDOW_S
    assert played.constraint != "None"
    assert "of the requests missed their promise; 90 % shall keep it" in played.description


def test_the_example_for_one_machine_finds_gateway_replicas_and_rules(
    service: alert.Service, tmp_path: Path, eventually: Any
) -> None:
    text = (alert.ROOT / "examples" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(
        text.replace("../.sloserve/assistant", str(service.state))
        .replace("scrape_interval: 5s", "scrape_interval: 1s")
        .replace("evaluation_interval: 15s", "evaluation_interval: 1s")
    )
    with running(tmp_path / "prometheus.yml", tmp_path) as found:
        eventually(lambda: found.instant("count(up == 1) == 3"), lambda: "three targets up")
        names = {rule["name"] for rule in found.rules()}
    assert {FAST_BURN, STEP_MODEL_OFF, "slo:objective:ratio"} <= names
