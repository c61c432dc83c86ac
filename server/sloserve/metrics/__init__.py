"""
Every metric this project exports: name, kind, unit, labels, help. Data only.

Exporters, dashboards, rules, routing and docs read this list; names are frozen once shipped.
Labels are bounded: services, classes, replicas and the fixed words named beside each.
"""

from sloserve.metrics.metric import (
    HOP_BUCKETS,
    PREFIX,
    RATIO_BUCKETS,
    SHORT_BUCKETS,
    SLACK_BUCKETS,
    STEP_BUCKETS,
    TOKEN_BUCKETS,
    TPOT_BUCKETS,
    TTFT_BUCKETS,
    Kind,
    Metric,
)
from sloserve.metrics.operator import OPERATOR
from sloserve.metrics.vllm import VLLM

__all__ = [
    "EXPORTED",
    "GATEWAY",
    "GATEWAY_EXPORTS",
    "OPERATOR",
    "PREFIX",
    "REPLICA",
    "REPLICA_EXPORTS",
    "REPORT",
    "SHARED",
    "VLLM",
    "Kind",
    "Metric",
]

_PER_CLASS = ("service", "model", "slo_class")
_ATTAINED = (*_PER_CLASS, "promise")
_OUTCOME = (*_PER_CLASS, "decision", "outcome", "reason")

# Both servers export these: what was promised, by which generation of the manifest.
SHARED = (
    Metric(
        "sloserve_slo_target_seconds",
        Kind.GAUGE,
        "Target of a class; promise is ttft or tpot (the tightest stage). A slowdown shows its"
        " floor, if it has one.",
        ("service", "slo_class", "promise"),
    ),
    Metric(
        "sloserve_slo_objective_ratio",
        Kind.GAUGE,
        "Share of requests (0 to 1) that shall keep every promise of the class.",
        ("service", "slo_class"),
    ),
    Metric(
        "sloserve_config_generation",
        Kind.GAUGE,
        "Generation of the service manifest in force.",
    ),
)

# The gateway sees what the client sees.
GATEWAY = (
    Metric(
        "sloserve_requests_total",
        Kind.COUNTER,
        "Requests, each once, at its end. decision: admitted, deferred, degraded, declined, none;"
        " outcome: finished, failed, cancelled, refused; reason: why there was no promise.",
        _OUTCOME,
    ),
    Metric(
        "sloserve_slo_requests_total",
        Kind.COUNTER,
        "Eligible requests per class, judged as the client saw them (strict score).",
        _PER_CLASS,
    ),
    Metric(
        "sloserve_slo_attained_total",
        Kind.COUNTER,
        "Requests that kept their promise; promise is ttft, tpot or all.",
        _ATTAINED,
    ),
    Metric(
        "sloserve_slo_missed_total",
        Kind.COUNTER,
        "Eligible requests that did not keep their promise, by what bound: why there was none"
        " (TTFT, TPOT, KV, Replicas, ...), or LateFirstToken or LateToken when there was one.",
        (*_PER_CLASS, "reason"),
    ),
    Metric(
        "sloserve_gateway_added_seconds",
        Kind.HISTOGRAM,
        "Time the gateway itself adds to a request before its first byte.",
        ("service",),
        SHORT_BUCKETS,
    ),
    Metric(
        "sloserve_gateway_hops",
        Kind.HISTOGRAM,
        "Replicas asked per request (count, not seconds).",
        ("service",),
        HOP_BUCKETS,
    ),
    Metric(
        "sloserve_gateway_pending",
        Kind.GAUGE,
        "Requests that wait in the gateway for a replica that can promise.",
        ("service", "slo_class"),
    ),
    Metric(
        "sloserve_gateway_inflight",
        Kind.GAUGE,
        "Requests the gateway has forwarded and not finished.",
        ("service",),
    ),
    Metric(
        "sloserve_gateway_replicas",
        Kind.GAUGE,
        "Replicas known, by state: loading, ready, draining, unknown.",
        ("service", "state"),
    ),
    Metric(
        "sloserve_gateway_report_age_seconds",
        Kind.GAUGE,
        "Age of the oldest report among the replicas that ever reported; above 1 s routing no"
        " longer believes it.",
        ("service",),
    ),
    Metric(
        "sloserve_gateway_ttft_seconds",
        Kind.HISTOGRAM,
        "Time to first token as the client saw it.",
        _PER_CLASS,
        TTFT_BUCKETS,
    ),
    Metric(
        "sloserve_gateway_tpot_seconds",
        Kind.HISTOGRAM,
        "Mean time per output token of a request, first token aside, as the client saw it.",
        _PER_CLASS,
        TPOT_BUCKETS,
    ),
)

# What routing reads: `/metrics?name[]=` of these is the report (`sloserve.http.report`).
REPORT = (
    Metric(
        "sloserve_replica_info",
        Kind.GAUGE,
        "Always 1; says which replica of which service this is.",
        ("service", "replica"),
    ),
    Metric(
        "sloserve_replica_state",
        Kind.GAUGE,
        "1 for the state the replica is in: loading, ready, draining.",
        ("state",),
    ),
    Metric(
        "sloserve_frontier_prompt_tokens",
        Kind.GAUGE,
        "Prompt lengths that would be admitted now; bound is min or max. Empty when max < min.",
        ("slo_class", "bound"),
    ),
    Metric(
        "sloserve_earliest_first_token_seconds",
        Kind.GAUGE,
        "Earliest first token for the class's median prompt, from now.",
        ("slo_class",),
    ),
    Metric(
        "sloserve_tightest_tpot_seconds",
        Kind.GAUGE,
        "Tightest TPOT among the promised requests that run; 0 when none runs.",
    ),
    Metric(
        "sloserve_token_supply_per_second",
        Kind.GAUGE,
        "Tokens per second this replica can still compute beside what it promised.",
    ),
    Metric(
        "sloserve_kv_blocks",
        Kind.GAUGE,
        "KV blocks by state: free (reclaimable ones included), used.",
        ("state",),
    ),
    Metric("sloserve_running_requests", Kind.GAUGE, "Requests that run."),
    Metric("sloserve_waiting_requests", Kind.GAUGE, "Requests that wait for admission."),
    Metric(
        "sloserve_waiting_prefill_tokens",
        Kind.GAUGE,
        "Prompt tokens of admitted and waiting requests that are not computed yet.",
    ),
    Metric(
        "sloserve_zero_load_seconds",
        Kind.GAUGE,
        "Zero-load time of a prompt: fixed + per_prompt_token times its length.",
        ("part",),
    ),
)

REPLICA = (
    Metric(
        "sloserve_replica_requests_total",
        Kind.COUNTER,
        "Requests as this replica saw them, each once, at its end."
        " decision: admitted, deferred, degraded, declined, none;"
        " outcome: finished, failed, cancelled, refused; reason: why there was no promise.",
        _OUTCOME,
    ),
    Metric(
        "sloserve_replica_slo_requests_total",
        Kind.COUNTER,
        "Eligible requests per class, judged by emission in the replica (strict score).",
        _PER_CLASS,
    ),
    Metric(
        "sloserve_replica_slo_attained_total",
        Kind.COUNTER,
        "Requests that kept their promise by emission; promise is ttft, tpot or all.",
        _ATTAINED,
    ),
    Metric("sloserve_step_seconds", Kind.HISTOGRAM, "Measured time of a step.", (), STEP_BUCKETS),
    Metric(
        "sloserve_step_error_ratio",
        Kind.HISTOGRAM,
        "Measured over predicted time of a step (1 is exact).",
        (),
        RATIO_BUCKETS,
    ),
    Metric(
        "sloserve_step_model_off",
        Kind.GAUGE,
        "1 while the latest 200 steps took, on average, more than 25 % longer or shorter than"
        " predicted.",
    ),
    Metric(
        "sloserve_step_correction_ratio",
        Kind.GAUGE,
        "Factor on the profile's step times that serving has taught; predictions include it (1: the"
        " profile is right).",
    ),
    Metric(
        "sloserve_step_tokens",
        Kind.HISTOGRAM,
        "Tokens of a step by kind: prefill, decode, draft, best_effort (count, not seconds).",
        ("kind",),
        TOKEN_BUCKETS,
    ),
    Metric(
        "sloserve_plan_seconds",
        Kind.HISTOGRAM,
        "Time a step waited for its plan.",
        (),
        SHORT_BUCKETS,
    ),
    Metric(
        "sloserve_slack_seconds",
        Kind.HISTOGRAM,
        "Due time less emission time of a request's first token and of its last.",
        ("slo_class",),
        SLACK_BUCKETS,
    ),
    Metric(
        "sloserve_draft_tokens_total",
        Kind.COUNTER,
        "Draft tokens by result: accepted, rejected.",
        ("result",),
    ),
    Metric(
        "sloserve_replica_devices",
        Kind.GAUGE,
        "Devices this replica computes on; device is cuda (GPUs) or cpu (1).",
        ("device",),
    ),
    Metric(
        "sloserve_emission_lag_seconds",
        Kind.GAUGE,
        "p99 of the way from emission in the engine to the write to the client.",
    ),
)

REPLICA_EXPORTS = (*SHARED, *REPORT, *REPLICA, *VLLM)
GATEWAY_EXPORTS = (*SHARED, *GATEWAY)
EXPORTED = (*SHARED, *GATEWAY, *REPORT, *REPLICA, *VLLM, *OPERATOR)
