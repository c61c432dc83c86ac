"""The worst lag of a traced request is what looking at every token would have found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.engine.events import Chunk
from sloserve.frontend.latencies import NUM_GAPS, Latencies
from sloserve.http.exporter import Exporter
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.slo import Bank, Promise, Stage, TokenDeadlines

ARRIVAL_S = 100.0
GAPS = st.lists(st.floats(0.0, 0.5), min_size=1, max_size=3 * NUM_GAPS)


def latencies(promise: Promise, *, lags: bool = True, num_sequences: int = 1) -> Latencies:
    return Latencies(
        Exporter(REPLICA_EXPORTS),
        model="m",
        promise=promise,
        arrival_s=ARRIVAL_S,
        num_sequences=num_sequences,
        lags=lags,
    )


def emit(to: Latencies, times_s: list[float], stages: list[int], *, ends: bool) -> None:
    for number, (at_s, stage) in enumerate(zip(times_s, stages, strict=True), start=1):
        chunk = Chunk("x", (7,), stage, at_s, number, 0)
        if ends and number == len(times_s):
            chunk.finish_reason = "stop"
        to.emitted(0, chunk)


@given(GAPS, st.integers(0, 100), st.sampled_from(Bank), st.booleans())
def test_it_is_what_looking_at_every_token_would_have_found(
    gaps_s: list[float], num_thinking: int, bank: Bank, ends: bool
) -> None:
    promise = Promise("c", 0.2, (Stage("think", 0.02), Stage("answer", 0.3)), bank=bank)
    times_s, at_s = [], ARRIVAL_S
    for gap_s in gaps_s:
        at_s += gap_s
        times_s.append(at_s)
    stages = [0 if number < num_thinking else 1 for number in range(len(times_s))]
    deadlines, worst_s = TokenDeadlines(promise, arrival_s=ARRIVAL_S), float("-inf")
    for at_s, stage in zip(times_s, stages, strict=True):
        deadlines.stage = stage
        worst_s = max(worst_s, at_s - deadlines.due_s)
        deadlines.emit(at_s, stage=stage)
    found = latencies(promise)
    emit(found, times_s, stages, ends=ends)
    assert found.worst_lag_s() == pytest.approx(worst_s, abs=1e-9)
    assert found.ttft_s == times_s[0] - ARRIVAL_S


def test_it_is_not_followed_for_requests_that_are_not_traced() -> None:
    found = latencies(Promise("c", 0.2, (Stage("decode", 0.1),)), lags=False)
    emit(found, [ARRIVAL_S + 0.1], [0], ends=True)
    assert found.worst_lag_s() is None


def test_without_a_token_there_is_none() -> None:
    found = latencies(Promise("c", 0.2, (Stage("decode", 0.1),)))
    assert found.worst_lag_s() is None
    assert found.ttft_s is None
