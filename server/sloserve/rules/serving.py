"""Alerts on replicas and gateways of one service."""

from sloserve.rules.ladder import Severity, budget
from sloserve.rules.promql import duration, number, selector
from sloserve.rules.rule import Alert
from sloserve.rules.scope import Scope, commonest_reason
from sloserve.slo import ServiceSpec, SloClass

NO_PROGRESS, KV_FULL = "SloserveReplicaNoProgress", "SloserveReplicaKvFull"
STEP_MODEL_OFF, STUCK_LOADING = "SloserveReplicaStepModelOff", "SloserveReplicaStuckLoading"
NO_REPLICA, DECLINES = "SloserveGatewayNoReplica", "SloserveGatewayDeclines"

LEAST_FREE = 0.05
"""Share of the KV blocks; below it newcomers wait for blocks."""
MOST_OFF = 0.25
"""Share by which measured step times may differ from predicted ones, and from the profile's: the
planner learns a steady difference, and then predicts well by a profile that is wrong."""
STEPS = 200
DECLINES_OVER_S = 1800.0


def replica_alerts(scope: Scope, spec: ServiceSpec) -> list[Alert]:
    """Per replica: what keeps it from serving, or from knowing what it can serve."""
    loading = scope.select("sloserve_replica_info")
    timeout = duration(spec.model.load_timeout_s)
    off, learned = "sloserve_step_error_ratio", "sloserve_step_correction_ratio"
    kv_free, kv_all = selector("sloserve_kv_blocks", state="free"), "sloserve_kv_blocks"
    return [
        scope.alert(
            NO_PROGRESS,
            _of_service(
                scope,
                "sloserve_running_requests + sloserve_waiting_requests > 0\n"
                "and increase(sloserve_step_seconds_count[2m]) == 0",
            ),
            severity=Severity.CRITICAL,
            summary="replica {{ $labels.replica }} of " + scope.service + " stands still",
            description=(
                "It holds {{ $value }} requests and has not finished a step for two minutes."
            ),
            constraint="Replicas",
            for_s=60.0,
        ),
        scope.alert(
            KV_FULL,
            _of_service(
                scope,
                f"{kv_free} / ignoring (state) sum without (state) ({kv_all}) < "
                f"{number(LEAST_FREE)}\n"
                "and on (job, instance) sloserve_waiting_requests > 0",
            ),
            severity=Severity.WARNING,
            summary="replica {{ $labels.replica }} of " + scope.service + " is out of KV blocks",
            description="{{ $value | humanizePercentage }} of its blocks are free; requests wait.",
            constraint="KV",
            for_s=300.0,
        ),
        scope.alert(
            STEP_MODEL_OFF,
            _of_service(
                scope,
                f"abs(\n"
                f"  increase({off}_sum[15m]) / (increase({off}_count[15m]) > {STEPS}) - 1\n"
                f") > {number(MOST_OFF)}\n"
                f"or\n"
                f"abs(avg_over_time({learned}[15m]) - 1) > {number(MOST_OFF)}\n"
                f"and increase({off}_count[15m]) > {STEPS}",
            ),
            severity=Severity.WARNING,
            summary="replica {{ $labels.replica }} of " + scope.service + " misjudges its steps",
            description=(
                "Step times differ by {{ $value | humanizePercentage }} on average from what was "
                "predicted, or from the profile that predictions start from. Promises rest on them."
            ),
            constraint="TPOT",
            for_s=600.0,
        ),
        scope.alert(
            STUCK_LOADING,
            f"{selector('sloserve_replica_state', state='loading')} == 1\n"
            f"and on (job, instance) {loading}",
            severity=Severity.WARNING,
            summary=f"a replica of {scope.service} does not finish loading",
            description=f"{{{{ $labels.instance }}}} has been loading for more than {timeout}.",
            constraint="Replicas",
            for_s=spec.model.load_timeout_s,
        ),
    ]


def gateway_alerts(scope: Scope, spec: ServiceSpec) -> list[Alert]:
    """For the service: nobody behind the gateways."""
    ready = scope.select("sloserve_gateway_replicas", state="ready")
    least = spec.autoscaling.min_replicas if spec.autoscaling is not None else spec.replicas
    pending = scope.select("sloserve_gateway_pending")
    asleep = f"\nand sum({pending}) > 0" if least == 0 else ""
    return [
        scope.alert(
            NO_REPLICA,
            f"max({ready}) == 0\nand max(max_over_time({ready}[1d])) > 0{asleep}",
            severity=Severity.CRITICAL,
            summary=f"{scope.service}: no replica is ready",
            description=(
                "No gateway knows a ready replica, though there was one within a day. Requests are "
                f"held for {duration(spec.gateway.hold_timeout_s)}, then refused with 503."
            ),
            constraint="Replicas",
            for_s=300.0 if least == 0 else 60.0,
        )
    ]


def decline_alert(scope: Scope, slo_class: SloClass) -> Alert:
    """For a class: refusals and best effort alone spend more than the budget."""
    window, least = duration(DECLINES_OVER_S), scope.settings
    refused = scope.select("sloserve_requests_total", decision="~declined|degraded")
    asked, allowed = scope.select("sloserve_requests_total"), budget(slo_class.objective)
    return scope.alert(
        DECLINES,
        f"sum(rate({refused}[{window}])) / (sum(rate({asked}[{window}])) > 0) > "
        f"{number(allowed)}\n"
        f"and sum(increase({refused}[{window}])) >= {least.min_missed}\n"
        f"and sum(increase({asked}[{window}])) >= {least.min_requests}",
        severity=Severity.WARNING,
        summary=f"{scope.service}: class {scope.slo_class} is declined or degraded too often",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the requests got no promise in {window}; "
            f"{number(allowed * 100)} % may miss one."
        ),
        constraint=commonest_reason(refused, DECLINES_OVER_S),
        for_s=300.0,
    )


def _of_service(scope: Scope, expr: str) -> str:
    """The part of `expr` (per target) that belongs to the service, with the replica's name."""
    info = scope.select("sloserve_replica_info")
    return f"(\n{expr}\n)\n* on (job, instance) group_left (service, replica) {info}"
