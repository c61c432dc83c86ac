"""
Every metric this project exports: name, kind, unit, labels, help. Data only.

Exporters, dashboards, rules, routing and docs read this list; names are frozen once shipped.
Labels are bounded: services, classes, replicas and the fixed words named beside each.
"""

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "sloserve_"


class Kind(StrEnum):
    """The Prometheus type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; a counter's name ends in `_total`, a time's in `_seconds`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# Bucket edges, in seconds unless said. The vllm:* ones are those that existing boards expect.
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TPOT_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKEN_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0,
                 8192.0, 16384.0)  # fmt: skip
STEP_BUCKETS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12,
                0.16, 0.25, 0.5, 1.0, 2.5)  # fmt: skip
RATIO_BUCKETS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0)
SLACK_BUCKETS = (-10.0, -2.5, -1.0, -0.5, -0.1, -0.05, -0.01, 0.0, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5,
                 10.0, 60.0)  # fmt: skip
SHORT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                 1.0)  # fmt: skip
HOP_BUCKETS = (1.0, 2.0, 3.0, 4.0)

_PER_CLASS = ("service", "model", "slo_class")
_ATTAINED = (*_PER_CLASS, "promise")
_OUTCOME = (*_PER_CLASS, "decision", "outcome", "reason")
_VLLM = ("model_name", "engine")

# Both servers export these: what was promised, by which generation of the manifest.
SHARED = (
    Metric(
        "sloserve_slo_target_seconds",
        Kind.GAUGE,
        "Target of a class; promise is ttft or tpot (the tightest stage). A slowdown shows its"
        " floor.",
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
        "sloserve_step_tokens",
        Kind.HISTOGRAM,
        "Tokens of a step by kind: prefill, decode, draft, best_effort (count, not seconds).",
        ("kind",),
        TOKEN_BUCKETS,
    ),
    Metric(
        "sloserve_plan_seconds",
        Kind.HISTOGRAM,
        "Time one planner decision took.",
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
        "sloserve_emission_lag_seconds",
        Kind.GAUGE,
        "p99 of the way from emission in the engine to the write to the client.",
    ),
)

# The names and edges that existing boards, llm-d and the Gateway API inference extension read.
VLLM = (
    Metric("vllm:num_requests_running", Kind.GAUGE, "Requests that run.", _VLLM),
    Metric("vllm:num_requests_waiting", Kind.GAUGE, "Requests that wait.", _VLLM),
    Metric("vllm:kv_cache_usage_perc", Kind.GAUGE, "KV blocks in use, 0 to 1.", _VLLM),
    Metric("vllm:gpu_cache_usage_perc", Kind.GAUGE, "Older name of the same.", _VLLM),
    Metric(
        "vllm:prefix_cache_queries_total",
        Kind.COUNTER,
        "Prompt tokens looked up in the prefix cache.",
        _VLLM,
    ),
    Metric(
        "vllm:prefix_cache_hits_total",
        Kind.COUNTER,
        "Prompt tokens found in the prefix cache.",
        _VLLM,
    ),
    Metric("vllm:num_preemptions_total", Kind.COUNTER, "Preemptions.", _VLLM),
    Metric("vllm:prompt_tokens_total", Kind.COUNTER, "Prompt tokens of served requests.", _VLLM),
    Metric("vllm:generation_tokens_total", Kind.COUNTER, "Output tokens.", _VLLM),
    Metric(
        "vllm:request_success_total",
        Kind.COUNTER,
        "Finished requests by finish reason: stop, length.",
        (*_VLLM, "finished_reason"),
    ),
    Metric(
        "vllm:iteration_tokens_total",
        Kind.HISTOGRAM,
        "Tokens per step (count, not seconds).",
        _VLLM,
        TOKEN_BUCKETS,
    ),
    Metric(
        "vllm:cache_config_info",
        Kind.GAUGE,
        "Always 1; size of the KV cache.",
        (*_VLLM, "block_size", "num_gpu_blocks"),
    ),
    Metric(
        "vllm:lora_requests_info",
        Kind.GAUGE,
        "Always 1; adapters (none are served yet).",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    ),
    Metric(
        "vllm:time_to_first_token_seconds",
        Kind.HISTOGRAM,
        "Arrival to first token.",
        _VLLM,
        TTFT_BUCKETS,
    ),
    Metric(
        "vllm:inter_token_latency_seconds",
        Kind.HISTOGRAM,
        "Gap between output tokens.",
        _VLLM,
        TPOT_BUCKETS,
    ),
    Metric(
        "vllm:request_time_per_output_token_seconds",
        Kind.HISTOGRAM,
        "Mean time per output token of a request, first token aside.",
        _VLLM,
        TPOT_BUCKETS,
    ),
    Metric(
        "vllm:e2e_request_latency_seconds",
        Kind.HISTOGRAM,
        "Arrival to last token.",
        _VLLM,
        REQUEST_BUCKETS,
    ),
    Metric(
        "vllm:request_queue_time_seconds",
        Kind.HISTOGRAM,
        "Arrival to decision.",
        _VLLM,
        REQUEST_BUCKETS,
    ),
    Metric(
        "vllm:request_prefill_time_seconds",
        Kind.HISTOGRAM,
        "Decision to first token.",
        _VLLM,
        REQUEST_BUCKETS,
    ),
    Metric(
        "vllm:request_decode_time_seconds",
        Kind.HISTOGRAM,
        "First to last token.",
        _VLLM,
        REQUEST_BUCKETS,
    ),
    Metric(
        "vllm:request_inference_time_seconds",
        Kind.HISTOGRAM,
        "Decision to last token.",
        _VLLM,
        REQUEST_BUCKETS,
    ),
)

REPLICA_EXPORTS = (*SHARED, *REPORT, *REPLICA, *VLLM)
GATEWAY_EXPORTS = (*SHARED, *GATEWAY)
EXPORTED = (*SHARED, *GATEWAY, *REPORT, *REPLICA, *VLLM)
