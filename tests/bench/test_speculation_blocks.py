"""Drafts against none in blocks that take turns: which steps count, and what pairs amount to."""

import random
import statistics
from collections.abc import Iterator
from itertools import islice

import pytest

pytest.importorskip("torch", reason="needs PyTorch: make setup")

from bench.speculation_blocks import (
    Block,
    Lane,
    Pair,
    Stopwatch,
    error,
    line_of,
    measured,
    pairs_of,
    ratio,
    same_text,
)

from sloserve.engine.clock import VirtualClock
from sloserve.engine.runner import ModelFacts
from sloserve.engine.sim import SimRunner, sim_facts
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.perf import StepModel
from sloserve.scheduler import RunnerDrafts, Speculating

MODEL = StepModel(w=0.004, a0=0.0, c1=0.0035, a1=0.0001, b=1e-7, d=0.0, k2=0.0001)
FACTS = sim_facts(max_model_len=512)


class Machine:
    """What both sides run on: its clock wanders, by a share of `step` from block to block."""

    def __init__(self, *, step: float = 0.0, trend: float = 1.0) -> None:
        self.slowness = 1.0
        self._step = step
        self._trend = trend
        self._dice = random.Random(3)

    def passed(self) -> None:
        self.slowness *= self._trend * (1 + self._dice.choice((-self._step, self._step)))
        self.slowness = min(max(self.slowness, 0.8), 1.25) if self._step else self.slowness


class Side:
    """Blocks of steps that take `step_s` each on a machine at rest, with a token a step."""

    def __init__(self, machine: Machine, step_s: float) -> None:
        self.machine = machine
        self.step_s = step_s
        self.name = "off" if step_s == 1.0 else "on"

    def block(self, num_steps: int) -> Block:
        time_s = num_steps * self.step_s * self.machine.slowness
        self.machine.passed()
        return Block(time_s=time_s, num_tokens=num_steps, num_steps=num_steps)


def test_a_wandering_clock_spoils_whole_runs_and_hardly_a_pair() -> None:
    machine = Machine(step=0.01)
    off, on = Side(machine, 1.0), Side(machine, 1.02)
    runs = [side.block(8) for side in (off, on) for _ in range(400)]
    whole = sum(b.time_s for b in runs[:400]) / sum(b.time_s for b in runs[400:])
    assert abs(whole * 1.02 - 1) > 0.02
    pairs = list(islice(pairs_of(off, on, num_steps=8), 400))
    assert error(pairs) < 0.001
    assert ratio(pairs) == pytest.approx(1 / 1.02, rel=3 * error(pairs))


def test_a_steady_trend_cancels() -> None:
    machine = Machine(trend=1.002)  # always the same first would be off by 0.002
    pairs = list(islice(pairs_of(Side(machine, 1.0), Side(machine, 1.05), num_steps=4), 200))
    assert ratio(pairs) == pytest.approx(1 / 1.05, rel=1e-4)


def test_turns_are_taken_abba_with_either_side_first() -> None:
    asked: list[str] = []

    class Told(Side):
        def block(self, num_steps: int) -> Block:
            asked.append(self.name)
            return Block(num_steps=num_steps)

    machine = Machine()
    pairs = list(islice(pairs_of(Told(machine, 1.0), Told(machine, 2.0), num_steps=4), 40))
    assert [pair[0].num_steps for pair in pairs] == [4] * 40
    fours = {tuple(asked[at : at + 4]) for at in range(0, len(asked), 4)}
    assert fours == {("off", "on", "on", "off"), ("on", "off", "off", "on")}


def lucky(seed: int, num_pairs: int, *, answer: int = 1) -> list[Pair]:
    """Drafts yield 9 tokens in a tenth of the answers, each `answer` pairs long, for 10 % more."""
    dice = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < num_pairs:
        num_tokens = 9 if dice.random() < 0.1 else 1
        pairs += [(Block(1.0, 1), Block(1.1, num_tokens)) for _ in range(answer)]
    return pairs[:num_pairs]


def test_rare_luck_counts_for_what_it_yields() -> None:
    pairs = lucky(1, 20_000)
    assert ratio(pairs) == pytest.approx(1.8 / 1.1, rel=0.03)


def test_the_error_is_how_far_measurements_of_the_same_lie_apart() -> None:
    many = [lucky(seed, 1600, answer=10) for seed in range(100)]
    apart = statistics.stdev(ratio(pairs) for pairs in many) / (1.8 / 1.1)
    told = statistics.fmean(error(pairs) for pairs in many)
    assert told == pytest.approx(apart, rel=0.2)
    by_pairs = statistics.fmean(error(pairs, num_groups=1600) for pairs in many)
    assert by_pairs < 0.5 * apart  # pairs of one answer say the same thing ten times


def test_a_slow_moment_that_both_share_is_no_error() -> None:
    dice = random.Random(2)
    pairs = [(Block(slow, 8), Block(1.03 * slow, 8)) for slow in (dice.random() for _ in range(99))]
    assert ratio(pairs) == pytest.approx(1 / 1.03)
    assert error(pairs) == pytest.approx(0.0, abs=1e-9)


def test_a_stopwatch_goes_on_only_while_it_is_let() -> None:
    clock = VirtualClock()
    watch = Stopwatch(clock)
    clock.sleep_until(5.0)
    with watch:
        clock.sleep_until(7.0)
        assert watch.now_s() == 2.0
        watch.sleep_until(3.0)
    clock.sleep_until(20.0)
    assert (watch.now_s(), clock.now_s()) == (3.0, 20.0)


class Wandering(VirtualClock):
    """Sleeping takes up to a quarter longer, by moods that last a second."""

    def sleep_until(self, at_s: float) -> None:
        now_s = self.now_s()
        mood = random.Random(int(now_s)).uniform(1.0, 1.25)
        super().sleep_until(now_s + mood * (at_s - now_s))


def a_lane(
    clock: VirtualClock,
    *,
    width: int,
    speculating: Speculating | None = None,
    acceptance: float = 0.0,
    num_output: int = 24,
    facts: ModelFacts = FACTS,
) -> Lane:
    return Lane(
        SimRunner(MODEL, facts, clock, acceptance=acceptance, seed=4),
        tokenizer=ByteTokenizer(),
        model=MODEL,
        prompts=[list(range(65 + n, 105 + n)) for n in range(5)],
        width=width,
        temperature=0.7,
        num_output=num_output,
        clock=clock,
        speculating=speculating,
    )


def told(lane: Lane) -> Iterator[int]:
    """Lengths of the answers, in the order in which they were asked for."""
    return (len(lane.answers[number]) for number in sorted(lane.answers))


def test_only_steps_count_in_which_everyone_decodes_and_nothing_else_is_done() -> None:
    clock = VirtualClock()
    lane = a_lane(clock, width=3)
    block = lane.block(200)
    assert (block.num_steps, block.num_tokens) == (200, 600)
    shortest, longest = (MODEL.step_s(3, context=3 * keys, pairs=0.0) for keys in (41, 64))
    assert shortest <= block.time_s / 200 <= longest  # a prefill takes twice as long
    assert block.num_left_out >= 20  # 600 tokens are 25 answers; some begin together
    assert lane.clock.now_s() == pytest.approx(clock.now_s())
    assert clock.now_s() > block.time_s + block.num_left_out * shortest


def test_steps_of_fewer_streams_do_not_count() -> None:
    lane = a_lane(VirtualClock(), width=3, facts=sim_facts(max_model_len=128, num_blocks=8))
    with pytest.raises(RuntimeError, match="steps 3 streams decode"):  # there is room for two
        lane.block(20)


def test_whoever_ends_makes_room_and_first_answers_are_of_different_lengths() -> None:
    lane = a_lane(VirtualClock(), width=3)
    lane.block(100)
    lengths = list(told(lane))
    assert lengths[:3] == [8, 16, 24]
    assert set(lengths[3:-3]) == {24}
    assert len(lane.engine.scheduler.requests) == 3
    lane.close()
    assert not lane.engine.has_work
    assert lane.engine.scheduler.blocks.num_free == FACTS.num_blocks


def test_one_lane_knows_nothing_of_the_time_that_the_other_takes() -> None:
    clock = VirtualClock()
    alone = a_lane(VirtualClock(), width=2)
    expected = [alone.block(4).time_s for _ in range(20)]
    off, on = a_lane(clock, width=2), a_lane(clock, width=2, num_output=90)
    pairs = list(islice(pairs_of(off, on, num_steps=4), 20))
    assert [pair[0].time_s for pair in pairs] == pytest.approx(expected)
    assert off.engine.scheduler.correction.ratio == pytest.approx(1.0, abs=0.01)


def test_taking_turns_on_a_wandering_clock_finds_what_steady_runs_have() -> None:
    def drafting() -> Speculating:
        return Speculating(RunnerDrafts(), fixed=3)

    steady = [
        a_lane(VirtualClock(), width=2, num_output=60).block(6000),
        a_lane(
            VirtualClock(), width=2, num_output=60, acceptance=0.6, speculating=drafting()
        ).block(6000),
    ]
    true = ratio([(steady[0], steady[1])])
    clock = Wandering()
    off = a_lane(clock, width=2, num_output=60)
    on = a_lane(clock, width=2, num_output=60, acceptance=0.6, speculating=drafting())
    pairs = measured(off, on, num_steps=4, num_warm_up=10, minutes=0.0, num_pairs=1000)
    assert 1.5 < true < 2.0
    assert error(pairs) < 0.01
    assert ratio(pairs) == pytest.approx(true, rel=3 * error(pairs))
    line = line_of(
        pairs, kind="any", temperature=0.7, width=2, way="fixed", same_text=same_text(off, on)
    )
    assert line.num_pairs == 1000
    assert line.tokens_per_step == pytest.approx(1 + 0.6 + 0.36 + 0.216, rel=0.05)
    assert line.acceptance == pytest.approx((0.6 + 0.36 + 0.216) / 3, rel=0.05)
    assert line.drafted_steps > 0.98  # the last step of an answer has no room for drafts
    assert line.same_text
    next(iter(on.answers.values()))[0] += 1
    assert not same_text(off, on)
