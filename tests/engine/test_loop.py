"""The engine's turns on virtual time: decisions, deadlines, broken steps."""

from typing import Any

from sloserve.engine.events import Broken, Chunk, Decided
from sloserve.engine.sim import SimRunner
from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.slo import Decision, OnInfeasible


def test_decisions_are_emitted_before_the_step_runs(a_bench: Any, script: Any, an_ask: Any) -> None:
    seen: list[int] = []
    runner = script([65] * 3)
    bench = a_bench(runner)
    runner.fails = lambda step: bool(seen.append(len(bench.events)))  # type: ignore[func-returns-value]
    bench.engine.add(an_ask(max_tokens=3))
    bench.run()
    assert seen[0] == 1


def test_tokens_are_emitted_at_the_end_of_their_step(a_bench: Any, an_ask: Any) -> None:
    bench = a_bench()
    ask = an_ask("x" * 100, max_tokens=3)
    bench.engine.add(ask)
    bench.run()
    times = [event.emitted_s for event in bench.of(ask) if isinstance(event, Chunk)]
    assert [round(at_s, 6) for at_s in times] == [0.012, 0.022, 0.032]


def test_a_request_that_must_wait_for_a_place_is_deferred(a_bench: Any, an_ask: Any) -> None:
    bench = a_bench(policy="fcfs")
    asks = [an_ask("hi", max_tokens=20) for _ in range(17)]  # 16 may run
    for ask in asks:
        bench.engine.add(ask)
    bench.run()
    decisions = [bench.decided(ask).decision for ask in asks]
    assert decisions == [Decision.ADMITTED] * 16 + [Decision.DEFERRED]


def test_an_impossible_promise_is_declined_with_a_reason_and_a_time(
    a_bench: Any, an_ask: Any
) -> None:
    bench = a_bench()
    ask = an_ask("x" * 400, ttft_s=0.005, on_infeasible=OnInfeasible.DECLINE)
    bench.engine.add(ask)
    bench.run()
    (decided,) = bench.of(ask)
    assert isinstance(decided, Decided)
    assert decided.decision is Decision.DECLINED
    assert decided.reason is Reason.TTFT
    assert decided.retry_after_s > 0
    assert decided.message


def test_promises_are_kept_when_the_model_is_exact(a_bench: Any, an_ask: Any) -> None:
    bench = a_bench()
    asks = []
    for i in range(60):
        asks.append(
            an_ask(
                "x" * (20 + 7 * i % 200),
                arrival_s=bench.clock.now_s(),
                ttft_s=0.3,
                tpot_s=0.03,
                max_tokens=10 + i % 20,
            )
        )
        bench.engine.add(asks[-1])
        for _ in range(3):
            bench.engine.turn()
    bench.run()
    counters = bench.engine.scheduler.counters
    admitted = sum(
        bench.decided(ask).decision in (Decision.ADMITTED, Decision.DEFERRED) for ask in asks
    )
    assert admitted > 30
    assert counters.num_relegated == 0
    assert counters.attained["chat", "all"] >= admitted


def test_a_broken_step_ends_its_requests_and_the_loop_goes_on(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    runner = script([65] * 5, [66] * 5)
    bench = a_bench(runner)
    runner.fails = lambda step: step == 3
    first, second = an_ask(max_tokens=5), an_ask(max_tokens=5)
    bench.engine.add(first)
    bench.run()
    assert isinstance(bench.of(first)[-1], Broken)
    assert "on fire" in bench.of(first)[-1].message
    assert bench.engine.num_failures_in_a_row == 1
    bench.engine.add(second)
    bench.run()
    assert bench.last(second).finish_reason == "length"
    assert bench.engine.num_failures_in_a_row == 0
    assert bench.engine.scheduler.blocks.num_free == bench.engine.facts.num_blocks


def test_a_runner_that_answers_too_little_is_a_broken_step(
    a_bench: Any, script: Any, an_ask: Any
) -> None:
    runner = script([65] * 5)
    runner.step = lambda rows: []
    bench = a_bench(runner)
    ask = an_ask()
    bench.engine.add(ask)
    bench.run()
    assert isinstance(bench.of(ask)[-1], Broken)


def test_a_broken_loop_ends_every_request(a_bench: Any, an_ask: Any) -> None:
    bench = a_bench()
    asks = [an_ask(max_tokens=50) for _ in range(3)]
    for ask in asks:
        bench.engine.add(ask)
    bench.engine.turn()
    bench.engine.break_all(RuntimeError("the planner lost its mind"))
    assert all(isinstance(bench.of(ask)[-1], Broken) for ask in asks)
    assert not bench.engine.has_work
    bench.engine.scheduler.check_integrity()
    assert bench.engine.scheduler.blocks.num_free == bench.engine.facts.num_blocks


def test_a_cancel_frees_the_blocks_at_once_and_says_nothing_more(a_bench: Any, an_ask: Any) -> None:
    bench = a_bench()
    ask = an_ask("x" * 50, max_tokens=50)
    bench.engine.add(ask)
    bench.engine.turn()
    num_events = len(bench.events)
    bench.engine.cancel(ask.key)
    bench.engine.cancel(ask.key)
    assert bench.engine.scheduler.blocks.num_free == bench.engine.facts.num_blocks
    assert not bench.engine.turn()
    assert len(bench.events) == num_events


def test_the_timeline_tells_what_steps_did(a_bench: Any, an_ask: Any) -> None:
    bench = a_bench()
    bench.engine.add(an_ask("x" * 100, max_tokens=3))
    bench.run()
    first, second, third = bench.engine.timeline.since(0)
    assert (first.number, first.num_prefill_tokens, first.num_decodes) == (1, 100, 0)
    assert (second.num_prefill_tokens, second.num_decodes, second.context) == (0, 1, 101)
    assert round(first.predicted_s, 9) == round(first.actual_s, 9) == 0.012
    assert bench.engine.timeline.since(2) == [third]


def test_noise_and_stragglers_are_the_same_for_the_same_seed(a_bench: Any, an_ask: Any) -> None:
    def actual(seed: int) -> list[float]:
        bench = a_bench()
        model = bench.engine.scheduler.model
        bench.engine.runner = SimRunner(
            model, bench.engine.facts, bench.clock, seed=seed, noise=0.1, straggler_share=0.2
        )
        bench.engine.add(an_ask(max_tokens=40))
        bench.run()
        return [record.actual_s for record in bench.engine.timeline.since(0)]

    assert actual(1) == actual(1)
    assert actual(1) != actual(2)
    assert max(actual(1)) > 1.3 * min(actual(1))


def test_a_simulated_step_takes_what_the_scheduler_predicts(a_bench: Any, an_ask: Any) -> None:
    model = StepModel(w=0.01, a0=1e-5, c1=0.002, a1=2e-4, b=1e-6, d=1e-7)
    bench = a_bench(policy="fcfs")
    bench.engine.scheduler.model = model
    bench.engine.runner = SimRunner(model, bench.engine.facts, bench.clock)
    for i in range(12):
        bench.engine.add(an_ask("x" * (1 + 29 * i), max_tokens=30))
        bench.engine.turn()
    bench.run()
    records = bench.engine.timeline.since(0)
    assert any(record.num_decodes and record.num_prefill_tokens for record in records)
    ratio = bench.engine.scheduler.correction.ratio
    assert abs(ratio - 1) < 1e-9
    assert all(abs(r.actual_s - r.predicted_s) < 1e-9 for r in records)
