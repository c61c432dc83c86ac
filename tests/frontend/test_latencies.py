"""A request's times, as histograms have them."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sloserve.engine.events import Chunk
from sloserve.frontend.latencies import NUM_GAPS, Latencies
from sloserve.http.exporter import Exporter
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.slo import Promise, Stage

PROMISE = Promise("chat", ttft_s=1.0, stages=(Stage("thinking", 0.1), Stage("answer", 0.2)))


def chunk(at_s: float, num_output: int, *, stage: int = 0, end: str | None = None) -> Chunk:
    return Chunk("", (), stage, at_s, num_output=num_output, num_cached=0, finish_reason=end)


def latencies(to: Exporter) -> Latencies:
    found = Latencies(to, model="m", promise=PROMISE, arrival_s=0.0, num_sequences=1)
    found.decided(0.25)
    return found


def value(exporter: Exporter, name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(exporter.render().decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found


@pytest.fixture
def exporter() -> Exporter:
    """A replica's."""
    return Exporter(REPLICA_EXPORTS)


def test_gaps_are_counted_per_token_and_all_of_them_at_the_end(exporter: Exporter) -> None:
    seen = latencies(exporter)
    assert seen.emitted(0, chunk(0.5, 1)) == 1
    assert seen.emitted(0, chunk(0.6, 3)) == 2  # two tokens at once: 50 ms each
    assert seen.emitted(0, chunk(0.6, 3)) == 0  # text that was held back
    assert seen.emitted(0, chunk(0.9, 4, end="stop")) == 1
    name = "vllm:inter_token_latency_seconds"
    assert value(exporter, f"{name}_count") == 3
    assert value(exporter, f"{name}_sum") == pytest.approx(0.4)
    assert value(exporter, f"{name}_bucket", le="0.05") == 2
    assert value(exporter, "vllm:request_success_total", finished_reason="stop") == 1


def test_a_long_answer_is_seen_before_it_ends(exporter: Exporter) -> None:
    seen = latencies(exporter)
    for n in range(NUM_GAPS + 1):
        seen.emitted(0, chunk(0.03 * n, n + 1))
    assert value(exporter, "vllm:inter_token_latency_seconds_count") == NUM_GAPS


def test_times_lengths_and_slack_of_a_finished_request(exporter: Exporter) -> None:
    seen = latencies(exporter)
    seen.emitted(0, chunk(0.5, 1))
    seen.emitted(0, chunk(0.6, 2))
    seen.emitted(0, chunk(0.7, 3, stage=1))
    seen.emitted(0, chunk(0.9, 4, stage=1, end="length"))
    seen.record(num_prompt=40)
    sums = {
        "time_to_first_token_seconds": 0.5,
        "request_queue_time_seconds": 0.25,
        "request_prefill_time_seconds": 0.25,
        "request_decode_time_seconds": 0.4,
        "request_inference_time_seconds": 0.65,
        "e2e_request_latency_seconds": 0.9,
        "request_time_per_output_token_seconds": 0.4 / 3,
        "request_prompt_tokens": 40,
        "request_generation_tokens": 4,
        "request_max_num_generation_tokens": 4,
    }
    found = {name: value(exporter, f"vllm:{name}_sum") for name in sums}
    assert found == pytest.approx(sums)
    # first: 0.5 s early; last: due at 0.5 + 0.1 + 2 * 0.2 = 1.0, 0.1 s early
    slack = "sloserve_slack_seconds_bucket"
    assert value(exporter, slack, le="0.05") == 0
    assert value(exporter, slack, le="0.5") == 2
