"""Counters over time."""

from collections.abc import Mapping

import pytest

from sloserve.errors import Reason
from sloserve.gateway.ledger import Ledger
from sloserve.gateway.promise import MISSED, Judgement
from sloserve.local.counts import NAMES, History, Key, parse_counts, quantile
from sloserve.slo import parse_service

INF = float("inf")
KEPT = Judgement(True, True, True)


def sample(judged: int, kept: int, **missed: int) -> Mapping[Key, float]:
    return {
        ("sloserve_slo_requests_total", "chat", ""): judged,
        ("sloserve_slo_attained_total", "chat", "all"): kept,
        **{("sloserve_slo_missed_total", "chat", word): n for word, n in missed.items()},
    }


def test_a_gateway_s_own_text_is_understood() -> None:
    spec = parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "demo"},
            "spec": {
                "model": {"source": "builtin://sim"},
                "sloClasses": [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}],
            },
        }
    )
    ledger, history = Ledger(spec, clock=lambda: 0.0), History()
    history.add(parse_counts(ledger.exporter.render(NAMES).decode()), 0.0)
    for _ in range(6):
        ledger.ended("chat", decision="admitted", outcome="finished", reason=Reason.NONE,
                     judgement=KEPT)  # fmt: skip
        ledger.latencies("chat", ttft_s=0.3, mean_tpot_s=0.02)
    for _ in range(3):
        ledger.ended("chat", decision="declined", outcome="refused", reason=Reason.TTFT,
                     judgement=MISSED)  # fmt: skip
    ledger.ended("chat", decision="none", outcome="refused", reason=Reason.REPLICAS,
                 judgement=MISSED)  # fmt: skip
    history.add(parse_counts(ledger.exporter.render(NAMES).decode()), 2.0)

    delta = history.over(60.0)
    assert [delta.per_s("chat", of) for of in ("admitted", "declined", "refused", "degraded")] == [
        3.0, 1.5, 0.5, 0.0
    ]  # fmt: skip
    assert delta.goodput_per_s("chat") == 3.0
    assert delta.missed("chat") == {"TTFT": 3, "Replicas": 1}
    ttft_s, tpot_s = delta.ttft_s("chat", 0.5), delta.tpot_s("chat", 0.95)
    assert ttft_s is not None
    assert 0.25 <= ttft_s <= 0.5  # the bucket that 0.3 falls into
    assert tpot_s is not None
    assert 0.01 <= tpot_s <= 0.025


def test_a_single_sample_is_too_soon_to_tell() -> None:
    history = History()
    assert history.over(60).per_s("chat", "admitted") is None
    history.add(sample(5, 5), 100.0)
    assert history.over(60).goodput_per_s("chat") is None
    assert history.over(60).ttft_s("chat", 0.5) is None


def test_only_the_window_counts() -> None:
    history = History()
    for second in range(0, 400, 2):
        history.add(sample(second, second), float(second))
    delta = history.over(60.0)
    assert 55 <= delta.elapsed_s <= 60
    assert delta.goodput_per_s("chat") == pytest.approx(1.0)


def test_what_happened_within_the_first_slot_is_not_lost() -> None:
    history = History()
    history.add(sample(0, 0), 10.0)
    history.add(sample(8, 8), 12.0)
    assert history.over(60.0).goodput_per_s("chat") == 4.0


def test_a_new_gateway_process_starts_a_new_history() -> None:
    history = History()
    history.add(sample(100, 90, TTFT=10), 0.0)
    history.add(sample(200, 180, TTFT=20), 20.0)
    history.add(sample(3, 3, TTFT=0), 40.0)
    assert history.over(300.0).missed("chat") == {}
    history.add(sample(6, 5, TTFT=1), 41.0)
    assert history.over(300.0).missed("chat") == {"TTFT": 1}


def test_the_strip_has_a_cell_per_fifteen_seconds_and_moves_with_time() -> None:
    history = History()
    history.add(sample(0, 0), 600.0)
    history.add(sample(4, 4), 606.0)
    history.add(sample(10, 7), 640.0)
    strip = history.strip("chat", now_s=641.0)
    assert len(strip) == 40
    assert strip[-3:] == [(4, 4), (0, 0), (6, 3)]
    later = history.strip("chat", now_s=671.0)
    assert later[-5:] == [(4, 4), (0, 0), (6, 3), (0, 0), (0, 0)]
    assert history.strip("other", now_s=671.0) == [(0, 0)] * 40


def test_what_is_older_than_ten_minutes_is_forgotten() -> None:
    history = History()
    history.add(sample(0, 0), 0.0)
    history.add(sample(9, 9), 5.0)
    for second in range(10, 1500, 5):
        history.add(sample(9, 9), float(second))
    assert sum(judged for judged, _ in history.strip("chat", now_s=1500.0)) == 0
    assert history.over(1e9).elapsed_s <= 605


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([], 0.5, None),
        ([(0.1, 0.0), (INF, 0.0)], 0.5, None),
        ([(0.1, 10.0), (0.2, 10.0), (INF, 10.0)], 0.5, 0.05),
        ([(0.1, 0.0), (0.2, 10.0), (INF, 10.0)], 0.5, 0.15),
        ([(0.1, 5.0), (0.2, 10.0), (INF, 10.0)], 0.95, 0.19),
        ([(0.1, 1.0), (0.2, 1.0), (INF, 10.0)], 0.95, 0.2),
    ],
)
def test_quantiles_are_those_of_prometheus(
    buckets: list[tuple[float, float]], share: float, expected: float | None
) -> None:
    assert quantile(share, buckets) == (None if expected is None else pytest.approx(expected))
