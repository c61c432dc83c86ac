"""The names and bucket edges that existing boards, llm-d and the Gateway API extension read."""

from sloserve.metrics.metric import (
    LENGTH_BUCKETS,
    REQUEST_BUCKETS,
    TOKEN_BUCKETS,
    TPOT_BUCKETS,
    TTFT_BUCKETS,
    Kind,
    Metric,
)

_BY_ENGINE = ("model_name", "engine")


def _gauge(name: str, help: str, *more: str) -> Metric:
    return Metric(f"vllm:{name}", Kind.GAUGE, help, (*_BY_ENGINE, *more))


def _counter(name: str, help: str, *more: str) -> Metric:
    return Metric(f"vllm:{name}_total", Kind.COUNTER, help, (*_BY_ENGINE, *more))


def _histogram(name: str, help: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"vllm:{name}", Kind.HISTOGRAM, help, _BY_ENGINE, buckets)


VLLM = (
    _gauge("num_requests_running", "Requests that run."),
    _gauge("num_requests_waiting", "Requests that wait."),
    _gauge("kv_cache_usage_perc", "KV blocks in use, 0 to 1."),
    _gauge("gpu_cache_usage_perc", "Older name of the same."),
    _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    _counter("num_preemptions", "Preemptions."),
    _counter("prompt_tokens", "Prompt tokens of served requests."),
    _counter("generation_tokens", "Output tokens."),
    _counter("spec_decode_num_draft_tokens", "Draft tokens proposed."),
    _counter("spec_decode_num_accepted_tokens", "Draft tokens accepted."),
    _counter("request_success", "Finished requests by reason: stop, length.", "finished_reason"),
    _histogram("iteration_tokens_total", "Tokens per step (count, not seconds).", TOKEN_BUCKETS),
    _gauge("cache_config_info", "Always 1; size of the KV cache.", "block_size", "num_gpu_blocks"),
    Metric(
        "vllm:lora_requests_info",
        Kind.GAUGE,
        "Always 1; how many adapters are served, and those of running and of waiting requests.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    ),
    _histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS),
    _histogram("inter_token_latency_seconds", "Gap between output tokens.", TPOT_BUCKETS),
    _histogram(
        "request_time_per_output_token_seconds",
        "Mean time per output token of a request, first token aside.",
        TPOT_BUCKETS,
    ),
    _histogram("e2e_request_latency_seconds", "Arrival to last token.", REQUEST_BUCKETS),
    _histogram("request_queue_time_seconds", "Arrival to decision.", REQUEST_BUCKETS),
    _histogram("request_prefill_time_seconds", "Decision to first token.", REQUEST_BUCKETS),
    _histogram("request_decode_time_seconds", "First to last token.", REQUEST_BUCKETS),
    _histogram("request_inference_time_seconds", "Decision to last token.", REQUEST_BUCKETS),
    _histogram("request_prompt_tokens", "Prompt tokens of a request.", LENGTH_BUCKETS),
    _histogram("request_generation_tokens", "Output tokens of a sequence.", LENGTH_BUCKETS),
    _histogram(
        "request_max_num_generation_tokens",
        "Output tokens of a request's longest sequence.",
        LENGTH_BUCKETS,
    ),
)
