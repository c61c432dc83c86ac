"""Alerts on a class's error budget, and on silence that would look like success."""

from sloserve.rules.ladder import Rung, Severity
from sloserve.rules.promql import duration, number
from sloserve.rules.recording import error_ratio_name
from sloserve.rules.rule import Alert
from sloserve.rules.scope import Scope, commonest_reason
from sloserve.slo import SloClass

FAST_BURN, SLOW_BURN = "SloserveFastBurn", "SloserveSlowBurn"
NO_TRAFFIC, METRICS_MISSING = "SloserveNoTraffic", "SloserveMetricsMissing"

_NAMES = {Severity.CRITICAL: FAST_BURN, Severity.WARNING: SLOW_BURN}
QUIET_S = 1800.0
MISSING_FOR_S = 600.0


def burn_alerts(
    scope: Scope, slo_class: SloClass, rungs: tuple[Rung, ...], *, period_s: float
) -> list[Alert]:
    """One alert per severity; any rung of it is enough."""
    return [
        _burn_alert(scope, slo_class, severity, of_it, period_s=period_s)
        for severity in Severity
        if (of_it := [rung for rung in rungs if rung.severity is severity])
    ]


def _burn_alert(
    scope: Scope, slo_class: SloClass, severity: Severity, rungs: list[Rung], *, period_s: float
) -> Alert:
    told = "; ".join(_told(rung, period_s=period_s) for rung in rungs)
    percent = number(slo_class.objective * 100)
    return scope.alert(
        _NAMES[severity],
        "\nor\n".join(_burns(scope, rung) for rung in rungs),
        severity=severity,
        summary=f"{scope.service}: class {scope.slo_class} breaks too many promises",
        description=(
            "{{ $value | humanizePercentage }} of the requests missed their promise; "
            f"{percent} % shall keep it. Fires at: {told}."
        ),
        constraint=commonest_reason(scope.select("sloserve_slo_missed_total"), rungs[0].long_s),
        labels={"sloth_severity": "page" if severity is Severity.CRITICAL else "ticket"},
    )


def _burns(scope: Scope, rung: Rung) -> str:
    """Both windows burn, and there was enough to judge by."""
    window, least = duration(rung.long_s), scope.settings
    eligible = f"sum(increase({scope.select('sloserve_slo_requests_total')}[{window}]))"
    kept = scope.select("sloserve_slo_attained_total", promise="all")
    threshold = number(rung.threshold)
    return (
        f"(\n"
        f"  max({scope.select(error_ratio_name(rung.long_s))}) > {threshold}\n"
        f"  and max({scope.select(error_ratio_name(rung.short_s))}) > {threshold}\n"
        f"  and {eligible} >= {least.min_requests}\n"
        f"  and {eligible} - sum(increase({kept}[{window}])) >= {least.min_missed}\n"
        f")"
    )


def _told(rung: Rung, *, period_s: float) -> str:
    return (
        f"{number(round(rung.threshold * 100, 4))} % missed over {duration(rung.long_s)} and "
        f"{duration(rung.short_s)}, a burn rate of {rung.factor:.3g}, "
        f"{rung.budget_spent * 100:.3g} % of the budget of {duration(period_s)}"
    )


def silence_alerts(scope: Scope) -> list[Alert]:
    """No requests where there were some, and no counters at all; `scope` is the whole service."""
    eligible, quiet = scope.select("sloserve_slo_requests_total"), duration(QUIET_S)
    return [
        scope.alert(
            NO_TRAFFIC,
            f"sum(increase({eligible}[{quiet}])) == 0\n"
            f"and sum(increase({eligible}[1d] offset {quiet})) >= {scope.settings.min_requests}",
            severity=Severity.WARNING,
            summary=f"{scope.service}: no requests for {quiet}",
            description=(
                "Gateways run and report, and no request was counted, though there were some the "
                "day before. Silence looks like a kept promise, so somebody should know."
            ),
            constraint="None",
            for_s=300.0,
        ),
        scope.alert(
            METRICS_MISSING,
            f"absent({eligible})",
            severity=Severity.CRITICAL,
            summary=f"{scope.service}: no gateway reports its counters",
            description=(
                "Prometheus sees no gateway of this service: either none runs, or it is not "
                "scraped. No promise is watched until it is."
            ),
            constraint="Replicas",
            for_s=MISSING_FOR_S,
        ),
    ]
