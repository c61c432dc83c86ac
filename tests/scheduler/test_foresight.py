"""Planning ahead: what is foreseen comes true or is given up, and nothing depends on it."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.planner import Limits, Plan, Snapshot, Verdict
from sloserve.planner.policies import make_policy
from sloserve.scheduler import Batch, Outcome
from sloserve.slo import Decision, OnInfeasible, Stage

MODEL = StepModel(w=0.008, a0=0.00001, c1=0.002, a1=0.0001, b=1e-7, d=1e-9)


def tokens_of(batch: Batch | None) -> dict[int, int]:
    return {row.request.id: row.count for row in batch.rows} if batch else {}


def finished(world: Any, batch: Batch, *ids: int, **outcome: Any) -> None:
    """The step ends as predicted, and so do the answers of `ids`."""
    start_s = world.now_s
    world.now_s += batch.stored_s
    outcomes = {
        row.request.id: Outcome(token_id=7, finished=row.request.id in ids, **outcome)
        for row in batch.rows
        if row.sample
    }
    world.scheduler.commit(batch, outcomes, start_s, world.now_s)
    world.scheduler.check_integrity()


def num_foreseen(world: Any) -> int:
    return int(world.scheduler.counters.num_foreseen)


History = list[tuple[float, list[tuple[int, int, int]]]]


def history(
    a_world: Callable[..., Any], *, seed: int, num_blocks: int, ahead: bool
) -> tuple[History, list[tuple[int, Decision]], int]:
    """Batches and decisions of a random load whose lengths are known, on an exact machine."""
    limits = Limits(block_size=16, num_blocks=num_blocks, max_running=16, max_batch_tokens=512)
    world = a_world(
        limits=limits, model=MODEL, policy=make_policy("sloserve"), prefix_caching=False
    )
    chance = random.Random(seed)
    coming = list(itertools.accumulate(chance.expovariate(60.0) for _ in range(25)))

    def arrive(until_s: float) -> None:
        while coming and coming[0] <= until_s:
            output = chance.randint(1, 40)
            request = world.request(
                chance.randint(10, 600),
                output=output,
                ttft_s=chance.choice([0.05, 0.2, 1.0]),
                tpot_s=chance.choice([0.015, 0.03, 0.1]),
                arrival_s=coming.pop(0),
                last_hop=chance.random() < 0.7,
            )
            request.known_output = output
            world.add(request)

    seen: History = []
    while coming or world.scheduler.requests:
        arrive(world.now_s)
        start_s = world.now_s
        batch = world.step(arrive if ahead else None)
        if batch is None:
            world.now_s = coming[0] if not world.scheduler.requests else world.now_s + 0.002
        else:
            seen.append((start_s, [(row.request.id, row.start, row.count) for row in batch.rows]))
    decisions = sorted((i, d) for i, d, _ in world.decisions)
    return seen, decisions, num_foreseen(world)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6), num_blocks=st.sampled_from([60, 1000]))
def test_a_foreseen_plan_is_the_one_that_would_have_been_made(
    a_world: Callable[..., Any], seed: int, num_blocks: int
) -> None:
    batches, decisions, none = history(a_world, seed=seed, num_blocks=num_blocks, ahead=False)
    ahead, told, num_taken = history(a_world, seed=seed, num_blocks=num_blocks, ahead=True)
    assert told == decisions
    assert ahead == batches
    assert none == 0
    assert num_taken > len(batches) // 2


def test_the_next_step_is_planned_while_one_runs(a_world: Any) -> None:
    world = a_world()
    seen: list[float] = []
    policy = type(world.policy)()

    def plan(snapshot: Snapshot) -> Plan:
        seen.append(snapshot.now_s)
        planned: Plan = policy.plan(snapshot)
        return planned

    world.policy.instead = plan
    world.add(world.request(8, output=3))
    batch = world.plan()
    world.foresee()
    world.foresee()
    assert seen == [0.0, batch.predicted_s]
    world.finish(batch)
    assert tokens_of(world.plan()) == {1: 1}
    assert len(seen) == 2
    assert num_foreseen(world) == 1


def test_an_arrival_is_planned_for_before_the_step_ends(a_world: Any) -> None:
    world = a_world()
    world.add(world.request(8, output=9))
    batch = world.plan()
    world.foresee()
    world.add(world.request(8))
    world.foresee()
    world.finish(batch)
    assert tokens_of(world.plan()) == {1: 1, 2: 8}
    assert num_foreseen(world) == 1
    assert world.decisions[-1][:2] == (2, Decision.ADMITTED)


def test_an_arrival_that_nothing_was_planned_for_makes_the_plan_anew(a_world: Any) -> None:
    world = a_world()
    world.add(world.request(8, output=9))
    batch = world.plan()
    world.foresee()
    world.add(world.request(8))
    world.finish(batch)
    assert tokens_of(world.plan()) == {1: 1, 2: 8}
    assert num_foreseen(world) == 0


def test_a_step_that_ends_late_makes_the_plan_anew(a_world: Any) -> None:
    world = a_world()
    world.add(world.request(8, output=9))
    batch = world.plan()
    world.foresee()
    world.finish(batch, factor=1.01)
    assert tokens_of(world.plan()) == {1: 1}
    assert num_foreseen(world) == 0


def test_a_step_may_end_late_by_the_margin_and_early_by_anything(a_world: Any) -> None:
    world = a_world()
    world.correction.margin_s = 0.001
    world.add(world.request(8, output=9))
    for factor in (1.09, 0.5):
        batch = world.plan()
        world.foresee()
        world.finish(batch, factor=factor)
    world.plan()
    assert num_foreseen(world) == 2


def test_who_ends_early_is_left_out_of_the_plan(a_world: Any) -> None:
    world = a_world()
    for _ in range(3):
        world.add(world.request(8, output=9))
    batch = world.plan()
    world.foresee()
    finished(world, batch, 2)
    assert tokens_of(world.plan()) == {1: 1, 3: 1}
    assert num_foreseen(world) == 1


def test_who_hangs_up_is_left_out_of_the_plan(a_world: Any) -> None:
    world = a_world()
    for _ in range(3):
        world.add(world.request(8, output=9))
    batch = world.plan()
    world.scheduler.cancel(1, world.now_s)
    world.foresee()
    world.scheduler.cancel(3, world.now_s)
    finished(world, batch)
    assert tokens_of(world.plan()) == {2: 1}
    assert num_foreseen(world) == 1
    assert world.scheduler.blocks.num_free == 64 - 3


def test_nothing_is_left_to_run_when_all_end_early(a_world: Any) -> None:
    world = a_world()
    world.add(world.request(8, output=9))
    batch = world.plan()
    world.foresee()
    finished(world, batch, 1)
    assert world.plan() is None
    world.add(world.request(8))
    assert tokens_of(world.plan()) == {2: 8}


def test_blocks_of_those_who_reach_their_limit_are_planned_with(a_world: Any) -> None:
    limits = Limits(block_size=4, num_blocks=6, max_running=8, max_batch_tokens=64)
    world = a_world(limits=limits)
    world.add(world.request(12, output=1))
    world.add(world.request(12, output=8))
    world.add(world.request(12, output=1))
    batch = world.plan()
    assert tokens_of(batch) == {1: 12, 2: 12}
    world.foresee()
    finished(world, batch, 1)
    assert tokens_of(world.plan()) == {2: 1}  # and one block for it: the third needs all three
    assert num_foreseen(world) == 1
    world.scheduler.check_integrity()


def test_who_was_to_end_and_goes_on_makes_the_plan_anew(a_world: Any) -> None:
    world = a_world()
    world.add(world.request(8, output=1))
    batch = world.plan()
    world.foresee()
    finished(world, batch)  # longer than it may be
    world.plan()
    assert num_foreseen(world) == 0


def test_an_answer_that_enters_a_tighter_stage_makes_the_plan_anew(a_world: Any) -> None:
    world = a_world()
    stages = (Stage("thinking", 1.0, until="</think>"), Stage("answer", 0.1))
    world.add(world.request(8, output=9, stages=stages))
    batch = world.plan()
    world.foresee()
    finished(world, batch, next_stage=1)
    assert tokens_of(world.plan()) == {1: 1}
    assert num_foreseen(world) == 0


@pytest.mark.parametrize("taken", ["relegated", "preempted"])
def test_what_was_given_is_not_taken_away_on_a_guess(a_world: Any, taken: str) -> None:
    world = a_world()
    for _ in range(2):
        world.add(world.request(8, output=9))
    batch = world.plan()
    first = True

    def plan(snapshot: Snapshot) -> Plan:
        nonlocal first
        grim, first = first, False
        return Plan(tokens={2: 1}, **({taken: (1,)} if grim else {}))  # type: ignore[arg-type]

    world.policy.instead = plan
    world.foresee()
    world.finish(batch)
    world.plan()
    assert num_foreseen(world) == 0
    assert world.scheduler.counters.num_relegated == 0
    assert world.scheduler.counters.num_preemptions == 0


def refusing(world: Any) -> None:
    """From now on everybody who waits is refused."""

    def plan(snapshot: Snapshot) -> Plan:
        verdict = Verdict(Reason.TTFT, "too much", 1.0, 1.0)
        return Plan(
            tokens={row.id: 1 for row in snapshot.running},
            infeasible={row.id: verdict for row in snapshot.waiting},
        )

    world.policy.instead = plan


def test_who_may_not_wait_is_refused_while_the_step_runs(a_world: Any) -> None:
    world = a_world()
    world.add(world.request(8, output=9))
    batch = world.plan()
    refusing(world)
    world.add(world.request(8, last_hop=False))
    world.add(world.request(8, on_infeasible=OnInfeasible.DECLINE))
    world.foresee()
    assert [d[:2] for d in world.decisions[1:]] == [(2, Decision.DECLINED)]
    world.finish(batch)
    assert tokens_of(world.plan()) == {1: 1}
    assert [d[:2] for d in world.decisions[2:]] == [(3, Decision.DECLINED)]
    assert num_foreseen(world) == 1


def test_nobody_is_refused_on_a_guess_when_another_has_left(a_world: Any) -> None:
    world = a_world()
    for _ in range(2):
        world.add(world.request(8, output=9))
    batch = world.plan()
    refusing(world)
    world.add(world.request(8, on_infeasible=OnInfeasible.DECLINE))
    world.foresee()
    finished(world, batch, 1)
    world.policy.instead = None
    assert tokens_of(world.plan()) == {2: 1, 3: 8}
    assert num_foreseen(world) == 0


def test_a_prefix_that_was_lost_meanwhile_makes_the_plan_anew(a_world: Any) -> None:
    limits = Limits(block_size=4, num_blocks=8, max_running=2, max_batch_tokens=64)
    world = a_world(limits=limits)
    shared = list(range(8))
    world.add(world.request([*shared, 1], output=1))
    world.run()
    world.add(world.request(16, output=9))
    batch = world.plan()
    world.add(world.request([*shared, 2]))
    world.foresee()
    world.scheduler.blocks.forget_cached()
    world.finish(batch)
    assert tokens_of(world.plan()) == {2: 1, 3: 9}
    assert num_foreseen(world) == 0


def test_a_prefix_that_was_found_meanwhile_makes_the_plan_anew(a_world: Any) -> None:
    limits = Limits(block_size=4, num_blocks=32, max_running=2, max_batch_tokens=8)
    world = a_world(limits=limits)
    shared = list(range(8))
    world.add(world.request(shared, output=9))
    batch = world.plan()
    world.add(world.request([*shared, 1, 2, 3, 4]))
    world.foresee()  # a chunk of its prompt, and no answer yet
    world.finish(batch)
    assert tokens_of(world.plan()) == {1: 1, 2: 4}  # four are left, and the answer comes
    assert num_foreseen(world) == 0
    assert world.scheduler.counters.num_policy_errors == 0


def test_a_broken_step_takes_the_plan_for_the_next_with_it(a_world: Any) -> None:
    world = a_world()
    world.add(world.request(8, output=9))
    batch = world.plan()
    world.foresee()
    world.scheduler.fail(batch, world.now_s)
    world.add(world.request(8))
    assert tokens_of(world.plan()) == {2: 8}
    assert num_foreseen(world) == 0
