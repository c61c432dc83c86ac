"""Alerts on replicas, gateways and the operator, judged by promtool."""

from typing import Any

from sloserve.rules import operator_groups

FIRING = 'sum by (alertname) (ALERTS{alertstate="firing"})'
TARGET = 'job="sloserve", instance="10.0.0.1:8000"'
GATEWAY = 'service="assistant", job="sloserve", instance="10.0.0.9:9090"'
BY_CLASS = f'{GATEWAY}, model="m", slo_class="chat"'
INFO = f'sloserve_replica_info{{service="assistant", replica="r1", {TARGET}}}'
ELIGIBLE = f"sloserve_slo_requests_total{{{BY_CLASS}}}"
KEPT = f'sloserve_slo_attained_total{{{BY_CLASS}, promise="all"}}'


def fires(name: str) -> dict[str, int]:
    return {f'{{alertname="Sloserve{name}"}}': 1}


def service(**more: str) -> dict[str, str]:
    """A service with traffic and one replica, all well, for an hour; then what is different."""
    well = {
        INFO: "1x60",
        ELIGIBLE: "0+60x60",
        KEPT: "0+60x60",
        f'sloserve_gateway_replicas{{{GATEWAY}, state="ready"}}': "1x60",
        f"sloserve_running_requests{{{TARGET}}}": "4x60",
        f"sloserve_waiting_requests{{{TARGET}}}": "0x60",
        f"sloserve_step_seconds_count{{{TARGET}}}": "0+600x60",
        f"sloserve_step_error_ratio_count{{{TARGET}}}": "0+600x60",
        f"sloserve_step_error_ratio_sum{{{TARGET}}}": "0+612x60",
        f"sloserve_step_correction_ratio{{{TARGET}}}": "1.1x60",
        f'sloserve_kv_blocks{{{TARGET}, state="free"}}': "500x60",
        f'sloserve_kv_blocks{{{TARGET}, state="used"}}': "500x60",
        f'sloserve_replica_state{{{TARGET}, state="loading"}}': "0x60",
        f'sloserve_replica_state{{{TARGET}, state="ready"}}': "1x60",
        f'sloserve_requests_total{{{BY_CLASS}, decision="admitted", outcome="finished", reason=""}}'
        "": "0+60x60",
    }
    unknown = {name for name in more if not any(s.startswith(name) for s in well)}
    assert not unknown
    return {s: next((v for k, v in more.items() if s.startswith(k)), v) for s, v in well.items()}


def test_each_trouble_of_a_service_has_its_alert_and_no_other(judge: Any, groups_of: Any) -> None:
    declined = f'sloserve_requests_total{{{BY_CLASS}, decision="declined", outcome="refused", '
    judge(
        groups_of({"chat": 99}, model={"source": "builtin://tiny", "loadTimeout": "10m"}),
        [
            {
                "name": "all is well",
                "series": service(),
                "expect": [(m, FIRING, {}) for m in (1, 5, 30, 60)],
            },
            {
                "name": "a replica stands still",
                "series": service(sloserve_step_seconds_count="0+600x30 18000x30"),
                "expect": [(30, FIRING, {}), (35, FIRING, fires("ReplicaNoProgress"))],
                "alerts": [],
            },
            {
                "name": "an idle replica stands still as well, and may",
                "series": service(
                    sloserve_step_seconds_count="0x60", sloserve_running_requests="0x60"
                ),
                "expect": [(35, FIRING, {})],
            },
            {
                "name": "KV blocks are used up while requests wait",
                "series": {
                    **service(sloserve_waiting_requests="0x10 7x50"),
                    f'sloserve_kv_blocks{{{TARGET}, state="free"}}': "500x10 30x50",
                    f'sloserve_kv_blocks{{{TARGET}, state="used"}}': "500x10 970x50",
                },
                "expect": [(14, FIRING, {}), (17, FIRING, fires("ReplicaKvFull"))],
            },
            {
                "name": "steps take 40 % longer than predicted",
                "series": service(sloserve_step_error_ratio_sum="0+840x60"),
                "expect": [(9, FIRING, {}), (20, FIRING, fires("ReplicaStepModelOff"))],
            },
            {
                "name": "steps take 40 % less",
                "series": service(sloserve_step_error_ratio_sum="0+360x60"),
                "expect": [(20, FIRING, fires("ReplicaStepModelOff"))],
            },
            {
                "name": "steps take 40 % longer than the profile says, and the planner knows",
                "series": service(sloserve_step_correction_ratio="1.4x60"),
                "expect": [(9, FIRING, {}), (20, FIRING, fires("ReplicaStepModelOff"))],
            },
            {
                "name": "the same of a replica that has nothing to do",
                "series": service(
                    sloserve_step_correction_ratio="1.4x60",
                    sloserve_step_error_ratio_count="0x60",
                    sloserve_step_error_ratio_sum="0x60",
                ),
                "expect": [(60, FIRING, {})],
            },
            {
                "name": "a replica loads for longer than it may",
                "series": {
                    **service(),
                    f'sloserve_replica_state{{{TARGET}, state="loading"}}': "1x60",
                },
                "expect": [(9, FIRING, {}), (11, FIRING, fires("ReplicaStuckLoading"))],
            },
            {
                "name": "the last replica is gone",
                "series": service(sloserve_gateway_replicas="1x20 0x40"),
                "expect": [(20, FIRING, {}), (23, FIRING, fires("GatewayNoReplica"))],
            },
            {
                "name": "there was never one: it loads",
                "series": service(sloserve_gateway_replicas="0x60"),
                "expect": [(60, FIRING, {})],
            },
            {
                "name": "one request of thirty is declined",
                "series": {**service(), f'{declined}reason="TTFT"}}': "0+2x60"},
                "expect": [(20, FIRING, fires("GatewayDeclines"))],
            },
            {
                "name": "one of three hundred: within the budget",
                "series": {**service(), f'{declined}reason="TTFT"}}': "0+0.2x60"},
                "expect": [(60, FIRING, {})],
            },
        ],
    )


def test_a_service_that_may_sleep_wants_a_replica_only_when_somebody_waits(
    judge: Any, groups_of: Any
) -> None:
    asleep = service(sloserve_gateway_replicas="1x10 0x50")
    pending = f'sloserve_gateway_pending{{{GATEWAY}, slo_class="chat"}}'
    judge(
        groups_of({"chat": 99}, autoscaling={"minReplicas": 0, "maxReplicas": 2}),
        [
            {
                "name": "asleep",
                "series": {**asleep, pending: "0x60"},
                "expect": [(40, FIRING, {})],
            },
            {
                "name": "called, and nobody comes",
                "series": {**asleep, pending: "0x30 3x30"},
                "expect": [(30, FIRING, {}), (37, FIRING, fires("GatewayNoReplica"))],
            },
        ],
    )


def test_an_alert_about_a_replica_names_it(judge: Any, groups_of: Any) -> None:
    expr = 'sum by (alertname, service, slo_class, severity, replica) (ALERTS{alertstate="firing"})'
    labels = 'alertname="SloserveReplicaNoProgress", replica="r1", service="assistant"'
    found = {f'{{{labels}, severity="critical", slo_class="all"}}': 1}
    judge(
        groups_of({"chat": 99}),
        [
            {
                "name": "two services, one of them in trouble",
                "series": service(sloserve_step_seconds_count="0x60"),
                "expect": [(10, expr, found)],
            }
        ],
    )


def test_the_operator_has_alerts_of_its_own(judge: Any) -> None:
    leads = f"sloserve_operator_leader{{{TARGET}}}"
    age = f"sloserve_operator_event_age_seconds{{{TARGET}}}"
    failed = f'sloserve_operator_reconciles_total{{{TARGET}, result="failed"}}'
    judge(
        operator_groups(),
        [
            {
                "name": "all is well; one reconcile failed once",
                "series": {leads: "1x60", age: "30x60", failed: "0x20 1x40"},
                "expect": [(m, FIRING, {}) for m in (5, 25, 38, 60)],
            },
            {
                "name": "reconciles fail again and again",
                "series": {leads: "1x60", age: "30x60", failed: "0+1x60"},
                "expect": [(10, FIRING, {}), (20, FIRING, fires("OperatorReconcileFailing"))],
            },
            {
                "name": "no news",
                "series": {leads: "1x60", age: "0+60x60", failed: "0x60"},
                "expect": [(15, FIRING, {}), (22, FIRING, fires("OperatorStale"))],
            },
            {
                "name": "a standby hears nothing new, and need not",
                "series": {
                    leads: "1x60",
                    age: "30x60",
                    'sloserve_operator_leader{job="sloserve", instance="standby"}': "0x60",
                    'sloserve_operator_event_age_seconds{job="sloserve", instance="standby"}': (
                        "9000x60"
                    ),
                },
                "expect": [(30, FIRING, {})],
            },
            {
                "name": "nobody leads",
                "series": {leads: "1x10 0x50"},
                "expect": [(10, FIRING, {}), (17, FIRING, fires("OperatorNoLeader"))],
            },
            {
                "name": "nobody is there",
                "series": {"up": "0x60"},
                "expect": [(6, FIRING, fires("OperatorNoLeader"))],
            },
        ],
    )
