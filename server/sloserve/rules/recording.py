"""
Recording rules of one class, in the schema of Sloth: boards made for it work unchanged.

The series come from exact counters, never from histogram buckets. An idle class has no error
ratio: neither 0 nor 1 would be true.
"""

from sloserve.rules.ladder import DAY_S, Rung, budget
from sloserve.rules.promql import duration, number
from sloserve.rules.rule import Recording
from sloserve.rules.scope import Scope
from sloserve.slo import API_VERSION, SloClass

STOCK_WINDOWS_S = (300.0, 1800.0, 3600.0, 7200.0, 21600.0, DAY_S, 3 * DAY_S)
"""What Sloth's boards look at."""


def error_ratio_name(window_s: float) -> str:
    """The series of a class's error ratio over a window."""
    return f"slo:sli_error:ratio_rate{duration(window_s)}"


def identity(scope: Scope) -> dict[str, str]:
    """The labels of every recorded series of a class: ours, and Sloth's."""
    parts = [scope.settings.namespace, scope.service, scope.slo_class]
    return {
        **scope.series,
        "sloth_id": "-".join(part for part in parts if part),
        "sloth_service": scope.service,
        "sloth_slo": scope.slo_class,
    }


def windows_s(rungs: tuple[Rung, ...]) -> list[float]:
    """Every window (seconds) that alerts or stock boards read."""
    return sorted({*STOCK_WINDOWS_S, *(w for rung in rungs for w in (rung.long_s, rung.short_s))})


def error_ratios(scope: Scope, wanted_s: list[float]) -> list[Recording]:
    """Missed / eligible requests over each window."""
    return [_error_ratio(scope, window_s) for window_s in wanted_s]


def about(scope: Scope, slo_class: SloClass, period_s: float) -> list[Recording]:
    """What the class promises, and how fast it burns now."""
    labels, allowed = identity(scope), budget(slo_class.objective)
    current = scope.select(error_ratio_name(300.0))
    info = {
        "sloth_mode": "sloserve",
        "sloth_objective": number(slo_class.objective * 100),
        "sloth_spec": API_VERSION,
        "sloth_version": "sloserve",
    }
    return [
        Recording("slo:objective:ratio", _constant(slo_class.objective), labels),
        Recording("slo:error_budget:ratio", _constant(allowed), labels),
        Recording("slo:time_period:days", _constant(period_s / DAY_S), labels),
        Recording("slo:current_burn_rate:ratio", f"max({current}) / {number(allowed)}", labels),
        Recording("sloth_slo_info", "vector(1)", {**labels, **info}),
    ]


def of_the_period(scope: Scope, slo_class: SloClass, period_s: float) -> list[Recording]:
    """
    Error ratio, burn and what is left of the budget over the whole period, by requests.

    Counted, not averaged over time: a quiet night doesn't weigh as much as a busy day.
    """
    labels, allowed = identity(scope), budget(slo_class.objective)
    whole = f"max({scope.select(error_ratio_name(period_s))})"
    burn = f"{whole} / {number(allowed)}"
    return [
        _error_ratio(scope, period_s),
        Recording("slo:period_burn_rate:ratio", burn, labels),
        Recording("slo:period_error_budget_remaining:ratio", f"1 - {burn}", labels),
    ]


def _error_ratio(scope: Scope, window_s: float) -> Recording:
    window = duration(window_s)
    attained = scope.select("sloserve_slo_attained_total", promise="all")
    eligible = scope.select("sloserve_slo_requests_total")
    return Recording(
        error_ratio_name(window_s),
        f"clamp_min(\n"
        f"  1 - sum(rate({attained}[{window}]))\n"
        f"    / (sum(rate({eligible}[{window}])) > 0),\n"
        f"  0\n"
        f")",
        {**identity(scope), "sloth_window": window},
    )


def _constant(value: float) -> str:
    return f"vector({number(value)})"
