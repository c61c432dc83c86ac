"""Alerts on the operator; one set per cluster, not per service."""

from sloserve.rules.ladder import Severity
from sloserve.rules.promql import selector
from sloserve.rules.rule import Alert
from sloserve.rules.scope import Scope
from sloserve.rules.settings import RuleSettings

RECONCILE_FAILING, STALE = "SloserveOperatorReconcileFailing", "SloserveOperatorStale"
NO_LEADER = "SloserveOperatorNoLeader"
SERVICE = "sloserve-operator"
"""The label `service` of these alerts."""
MOST_AGE_S = 900
"""Watches are renewed and the whole picture is refreshed more often than that."""


def operator_alerts(settings: RuleSettings) -> list[Alert]:
    """What a cluster's administrator must know; services go on without an operator."""
    scope = Scope(settings, service=SERVICE, dashboard="sloserve-operator")
    failed = selector("sloserve_operator_reconciles_total", result="failed")
    return [
        scope.alert(
            RECONCILE_FAILING,
            f"sum(increase({failed}[15m])) > 0",
            severity=Severity.WARNING,
            summary="the operator can't bring a service into its declared state",
            description=(
                "{{ $value | humanize }} reconciles failed in 15 minutes, and it has gone on for "
                "as long. What runs goes on; changes do not arrive."
            ),
            constraint="None",
            for_s=900.0,
        ),
        scope.alert(
            STALE,
            "max(\n"
            "  sloserve_operator_event_age_seconds\n"
            "  and on (job, instance) sloserve_operator_leader == 1\n"
            f") > {MOST_AGE_S}",
            severity=Severity.WARNING,
            summary="the operator hears nothing from the cluster",
            description="The last event or resync was {{ $value | humanizeDuration }} ago.",
            constraint="None",
            for_s=300.0,
        ),
        scope.alert(
            NO_LEADER,
            "(max(sloserve_operator_leader) or vector(0)) < 1",
            severity=Severity.WARNING,
            summary="no operator holds the Lease",
            description=(
                "No operator leads, or none is scraped. What runs goes on; changes, scaling and "
                "status stand still."
            ),
            constraint="None",
            for_s=300.0,
        ),
    ]
