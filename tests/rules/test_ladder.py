"""The ladder of burn rates, for every objective and period a manifest may declare."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.rules.ladder import DAY_S, Severity, budget, ladder
from sloserve.rules.promql import duration

objectives = st.decimals("1", "99.999", places=3).map(lambda percent: float(percent / 100))
periods_s = st.floats(DAY_S, 90 * DAY_S)


@given(objectives, periods_s)
def test_every_rung_can_fire_and_none_fires_within_the_objective(
    objective: float, period_s: float
) -> None:
    for rung in ladder(objective, period_s):
        assert budget(objective) <= rung.threshold < 1
        assert rung.factor >= 1 - 1e-9
        assert rung.factor < 1 / budget(objective)
        assert rung.short_s < rung.long_s < period_s


@given(objectives, periods_s)
def test_slower_rungs_look_longer_and_ask_for_less(objective: float, period_s: float) -> None:
    rungs = ladder(objective, period_s)
    assert rungs[0].severity is Severity.CRITICAL
    assert rungs[-1].threshold == pytest.approx(budget(objective))
    for faster, slower in itertools.pairwise(rungs):
        assert faster.long_s < slower.long_s
        assert faster.short_s <= slower.short_s
        assert faster.threshold > slower.threshold
        assert (faster.severity, slower.severity) != (Severity.WARNING, Severity.CRITICAL)


@given(objectives, periods_s)
def test_without_slow_rungs_the_critical_ones_stay(objective: float, period_s: float) -> None:
    whole = ladder(objective, period_s)
    fast = ladder(objective, period_s, slow=False)
    assert fast == tuple(r for r in whole if r.severity is Severity.CRITICAL)


def test_thirty_days_at_99_percent_is_the_workbooks_table() -> None:
    found = [
        (r.severity, round(r.factor, 6), r.long_s / 3600, r.short_s / 60)
        for r in ladder(0.99, 30 * DAY_S)
    ]
    assert found == [
        ("critical", 14.4, 1, 5),
        ("critical", 6, 6, 30),
        ("warning", 3, 24, 120),
        ("warning", 1, 72, 360),
    ]
    spent = [round(r.budget_spent, 6) for r in ladder(0.99, 30 * DAY_S)]
    assert spent == [0.02, 0.05, 0.1, 0.1]


def test_windows_shrink_with_the_period() -> None:
    found = [(r.long_s / 60, r.short_s / 60) for r in ladder(0.99, 7 * DAY_S)]
    assert found == [(15, 5), (90, 10), (360, 30), (1080, 90)]


@pytest.mark.parametrize(
    ("objective", "thresholds"),
    [
        (0.9, [0.8, 0.6, 0.3, 0.1]),  # 14.4 times 10 % can't be missed: capped
        (0.95, [0.72, 0.3, 0.15, 0.05]),
        (0.99, [0.144, 0.06, 0.03, 0.01]),
        (0.999, [0.0144, 0.006, 0.003, 0.001]),
        (0.5, [0.8, 0.5]),  # three capped rungs would say the same
    ],
)
def test_thresholds_fit_the_objective(objective: float, thresholds: list[Any]) -> None:
    assert [r.threshold for r in ladder(objective, 7 * DAY_S)] == pytest.approx(thresholds)


def test_the_table_in_the_documents_is_the_ladder() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.count("|") == 9]
    told = [[re.sub(r"( %| \(.*)", "", cell) for cell in row] for row in rows[2:]]
    found = []
    for i, rung in enumerate(ladder(0.99, 7 * DAY_S)):
        missed = [ladder(o, 7 * DAY_S)[i].threshold * 100 for o in (0.9, 0.95, 0.99, 0.999)]
        found.append(
            [
                rung.severity.value,
                f"{rung.factor:.3g}",
                f"{duration(rung.long_s)}, {duration(rung.short_s)}",
                f"{rung.budget_spent:.1%}".removesuffix("%"),
                *(f"{share:.3g}" for share in missed),
            ]
        )
    assert told == found
