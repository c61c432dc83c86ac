"""
Which burn rates over which windows are worth an alert, for any objective and period.

The burn rate is the error ratio over the error budget: at 1 the budget of a period is spent
exactly at its end. The ladder is the one of Google's SRE workbook (chapter 5) for 30 days,

    critical   14.4 over 1 h and 5 m       2 % of the budget
    critical    6   over 6 h and 30 m      5 %
    warning     3   over 1 d and 2 h      10 %
    warning     1   over 3 d and 6 h      10 %

with its windows in proportion to the period, and its thresholds where they can be reached: burn
never exceeds 1/(1 - objective), so that at 90 % a rung at 14.4 would never fire.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import log

DAY_S = 86400.0
PERIOD_S = 30 * DAY_S
MOST_MISSED = 0.8
"""No rung waits for a larger share of missed requests, unless the budget itself is about as large:
then it is half-way between the budget and everything."""
LEAST_LONG_S = 900.0
LEAST_SHORT_S = 300.0
"""Shorter ones would hold too few scrapes."""

_MINUTES = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1080, 1440, 2160, 2880,
            4320, 5760, 8640, 12960)  # fmt: skip
WINDOWS_S = tuple(minutes * 60.0 for minutes in _MINUTES)


class Severity(StrEnum):
    """How soon somebody should look; the label that most Alertmanager routes know."""

    CRITICAL = "critical"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Rung:
    """Alert when more than `threshold` of the requests missed, over both windows (seconds)."""

    severity: Severity
    long_s: float
    short_s: float
    threshold: float
    factor: float
    """The burn rate that the threshold is, after it was capped."""
    budget_spent: float
    """Share of the period's budget that is gone when the long window burns at `factor`."""


_WORKBOOK = (
    (Severity.CRITICAL, 14.4, 3600.0),
    (Severity.CRITICAL, 6.0, 6 * 3600.0),
    (Severity.WARNING, 3.0, DAY_S),
    (Severity.WARNING, 1.0, 3 * DAY_S),
)


def budget(objective: float) -> float:
    """Share of requests that may miss; nine digits, as 1 - 0.99 is not 0.01."""
    return round(1 - objective, 9)


def ladder(objective: float, period_s: float, *, slow: bool = True) -> tuple[Rung, ...]:
    """
    The rungs, fastest first; without `slow` the critical ones only (a young cluster has no day).

    Every threshold can be exceeded and is at least the budget; they fall as the windows grow.
    """
    allowed = budget(objective)
    most = max(MOST_MISSED, (1 + allowed) / 2)
    by_window: dict[float, Rung] = {}
    for severity, factor, workbook_long_s in _WORKBOOK:
        long_s = _window_s(workbook_long_s * period_s / PERIOD_S, least_s=LEAST_LONG_S)
        threshold = round(min(factor * allowed, most), 9)
        urgent = by_window[long_s].severity if long_s in by_window else severity
        by_window[long_s] = Rung(
            severity=urgent,
            long_s=long_s,
            short_s=_window_s(long_s / 12, least_s=LEAST_SHORT_S),
            threshold=threshold,
            factor=threshold / allowed,
            budget_spent=threshold / allowed * long_s / period_s,
        )
    rungs: list[Rung] = []
    for rung in by_window.values():  # a capped one that a faster one covers says nothing new
        if not rungs or rung.threshold < rungs[-1].threshold:
            rungs.append(rung)
    return tuple(r for r in rungs if slow or r.severity is Severity.CRITICAL)


def _window_s(seconds: float, *, least_s: float) -> float:
    """The window nearest in proportion that people would choose."""
    fitting = [w for w in WINDOWS_S if w >= least_s]
    return min(fitting, key=lambda window_s: abs(log(window_s / max(seconds, least_s))))
