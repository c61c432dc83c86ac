"""
What boards and pickers made by others ask of a replica: vLLM's names, Sloth's schema.

The names are written out here and not taken from the declared metrics: they are other people's.
The shapes are those that such boards have: percentiles, means, rates, ratios, heat maps.
"""

from collections.abc import Iterator

LATENCIES = (
    "e2e_request_latency_seconds",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
)
SIZES = (
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "iteration_tokens_total",
)
COUNTERS = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
)
GAUGES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "gpu_cache_usage_perc",
)
SLOTH = (
    "slo:sli_error:ratio_rate5m",
    "slo:objective:ratio",
    "slo:error_budget:ratio",
    "slo:time_period:days",
    "slo:current_burn_rate:ratio",
    "slo:period_burn_rate:ratio",
    "slo:period_error_budget_remaining:ratio",
)


def vllm_queries(model: str) -> Iterator[str]:
    """Queries of vLLM's own boards, and what pickers read, for the model of that name."""
    one = f'{{model_name="{model}"}}'
    for name in (*LATENCIES, *SIZES):
        buckets = f"sum by (le) (rate(vllm:{name}_bucket{one}[1m]))"
        yield from (f"histogram_quantile({share}, {buckets})" for share in (0.5, 0.9, 0.95, 0.99))
        yield f"rate(vllm:{name}_sum{one}[1m]) / rate(vllm:{name}_count{one}[1m])"
        yield f"sum(increase(vllm:{name}_sum{one}[1h])) / sum(increase(vllm:{name}_count{one}[1h]))"
        yield f"sum by (le) (increase(vllm:{name}_bucket{one}[1m]))"
    yield from (f"sum(rate(vllm:{name}{one}[1m]))" for name in COUNTERS)
    yield from (f"max by (instance, engine) (vllm:{name}{one})" for name in GAUGES)
    yield f"sum by (finished_reason) (increase(vllm:request_success_total{one}[1m]))"
    yield (
        f"sum(rate(vllm:prefix_cache_hits_total{one}[1m]))"
        f" / (sum(rate(vllm:prefix_cache_queries_total{one}[1m])) > 0)"
    )
    yield "max by (block_size, num_gpu_blocks) (vllm:cache_config_info)"
    adapters = "max_lora, running_lora_adapters, waiting_lora_adapters"
    yield f"max by ({adapters}) (vllm:lora_requests_info)"


def sloth_queries(service: str, slo_class: str) -> Iterator[str]:
    """Queries of Sloth's boards for one class."""
    one = f'{{sloth_service="{service}", sloth_slo="{slo_class}"}}'
    yield from (f"max({name}{one})" for name in SLOTH)
    yield f"slo:sli_error:ratio_rate5m{one} / on () group_left () slo:error_budget:ratio{one}"
    yield f'sloth_slo_info{{sloth_service="{service}"}}'
