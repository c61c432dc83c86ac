"""What the gateway counts: from 0, once, and with what bound."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sloserve.errors import Reason
from sloserve.gateway.ledger import Ledger
from sloserve.gateway.promise import MISSED, NOT_COUNTED, Judgement
from sloserve.slo import parse_service

KEPT = Judgement(eligible=True, ttft_kept=True, tpot_kept=True)
LATE_START = Judgement(eligible=True, tpot_kept=True)
LATE_LATER = Judgement(eligible=True, ttft_kept=True)


def service(*classes: str) -> Any:
    return parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "assistant"},
            "spec": {
                "model": {"source": "builtin://tiny"},
                "sloClasses": [
                    {"name": name, "ttft": {"target": "1s"}, "tpot": "50ms"} for name in classes
                ],
            },
        }
    )


def samples(ledger: Ledger, name: str) -> dict[tuple[str, ...], float]:
    """Values by the labels that are not the service's own."""
    families = text_string_to_metric_families(ledger.exporter.render().decode())
    own = ("service", "model", "slo_class")
    return {
        tuple(v for k, v in sample.labels.items() if k not in own): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


@pytest.fixture
def ledger() -> Ledger:
    """Of a service with the class chat; time stands still."""
    return Ledger(service("chat"), clock=lambda: 0.0)


def test_everything_that_is_asked_of_a_class_is_there_at_zero(ledger: Ledger) -> None:
    missed = samples(ledger, "sloserve_slo_missed_total")
    assert missed == {
        (reason,): 0 for reason in ("TTFT", "TPOT", "KV", "Replicas", "LateFirstToken", "LateToken")
    }
    assert samples(ledger, "sloserve_slo_requests_total") == {(): 0}
    assert set(samples(ledger, "sloserve_slo_attained_total")) == {("ttft",), ("tpot",), ("all",)}
    ends = samples(ledger, "sloserve_requests_total")
    assert set(ends.values()) == {0}
    assert len(ends) == 10
    assert samples(ledger, "sloserve_gateway_ttft_seconds_count") == {(): 0}


def test_a_class_of_a_later_manifest_starts_at_zero_and_the_old_ones_go_on(ledger: Ledger) -> None:
    ledger.ended(
        "chat", decision="admitted", outcome="finished", reason=Reason.NONE, judgement=KEPT
    )
    ledger.apply(service("chat", "code"))
    text = ledger.exporter.render().decode()
    labels = 'model="assistant",service="assistant",slo_class='
    assert f'sloserve_slo_requests_total{{{labels}"chat"}} 1.0' in text
    assert f'sloserve_slo_requests_total{{{labels}"code"}} 0.0' in text


@pytest.mark.parametrize(
    ("decision", "outcome", "reason", "judgement", "bound"),
    [
        ("admitted", "finished", Reason.NONE, LATE_START, "LateFirstToken"),
        ("deferred", "finished", Reason.TTFT, LATE_LATER, "LateToken"),
        ("admitted", "cancelled", Reason.CLIENT_GONE, MISSED, "LateFirstToken"),
        ("degraded", "finished", Reason.KV, MISSED, "KV"),
        ("declined", "refused", Reason.TPOT, MISSED, "TPOT"),
        ("none", "refused", Reason.REPLICAS, MISSED, "Replicas"),
        ("admitted", "failed", Reason.REPLICA_LOST, LATE_LATER, "ReplicaLost"),
    ],
)
def test_a_miss_says_what_bound(
    ledger: Ledger, decision: str, outcome: str, reason: Reason, judgement: Any, bound: str
) -> None:
    ledger.ended("chat", decision=decision, outcome=outcome, reason=reason, judgement=judgement)
    missed = samples(ledger, "sloserve_slo_missed_total")
    assert {key for key, value in missed.items() if value} == {(bound,)}


def test_eligible_requests_are_attained_or_missed(ledger: Ledger) -> None:
    for judgement in (KEPT, KEPT, LATE_START, LATE_LATER, MISSED, NOT_COUNTED):
        ledger.ended(
            "chat", decision="admitted", outcome="finished", reason=Reason.NONE, judgement=judgement
        )
    attained = samples(ledger, "sloserve_slo_attained_total")[("all",)]
    missed = sum(samples(ledger, "sloserve_slo_missed_total").values())
    assert (attained, missed) == (2, 3)
    assert samples(ledger, "sloserve_slo_requests_total") == {(): 5}
