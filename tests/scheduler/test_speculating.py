"""Drafts of a step: who gets them, whose blocks they use, and what is booked of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sloserve.perf import StepModel
from sloserve.planner import Limits
from sloserve.scheduler import Batch, Outcome, Proposal, RunnerDrafts, Speculating
from sloserve.scheduler.speculating import EXPLORE_STEPS

GREEDY_MODEL = StepModel(w=0.010, a0=0.00001, c1=0.0, a1=0.0, b=0.0, d=0.0, k2=0.0001)


class Parrot:
    """Proposes a fixed number of sevens."""

    serial = False

    def __init__(self, num: int = 4) -> None:
        self.num = num
        self.forgotten: list[int] = []

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        num = min(most, self.num)
        return Proposal(num, [7] * num, 3)

    def forget(self, request_id: int) -> None:
        self.forgotten.append(request_id)


@pytest.fixture
def drafted(a_world: Any) -> Any:
    """A world whose scheduler speculates."""

    def build(speculating: Speculating | None, **options: Any) -> Any:
        world = a_world(**{"model": GREEDY_MODEL, **options})
        world.scheduler.speculating = speculating
        return world

    return build


def commit(world: Any, batch: Batch, *, num_accepted: int, finished: bool = False) -> None:
    """Every sampled row gets so many of its drafts, and a token of its own."""
    outcomes = {}
    for row in batch.rows:
        if row.sample:
            kept = min(num_accepted, row.num_drafts)
            outcomes[row.request.id] = Outcome(
                token_id=9,
                finished=finished or row.request.num_output + kept + 1 >= row.request.max_output,
                earlier=(Outcome(token_id=7),) * kept,
                num_drafted=row.num_drafts,
                num_accepted=kept,
            )
    start_s = world.now_s
    world.now_s += batch.stored_s
    world.scheduler.commit(batch, outcomes, start_s, world.now_s)
    world.scheduler.check_integrity()


def first_token(world: Any, **request: Any) -> Any:
    """A request whose prefill is done."""
    added = world.add(world.request(**request))
    commit(world, world.plan(), num_accepted=0)
    return added


def test_a_decode_gets_drafts_and_a_prefill_none(drafted: Any) -> None:
    world = drafted(Speculating(Parrot()))
    request = world.add(world.request(8, output=40))
    batch = world.plan()
    assert batch.rows[0].num_drafts == 0
    commit(world, batch, num_accepted=0)
    batch = world.plan()
    (row,) = batch.rows
    assert (row.num_drafts, list(row.drafts), row.grade) == (4, [7] * 4, 3)
    assert (batch.num_tokens, batch.num_decodes, batch.num_draft_tokens) == (5, 1, 4)
    assert batch.num_prefill_tokens == 0
    assert len(request.blocks) * 4 >= len(request.tokens) + 4


def test_accepted_drafts_are_emitted_computed_and_counted(drafted: Any) -> None:
    world = drafted(Speculating(Parrot()))
    request = first_token(world, prompt=8, output=40)
    batch = world.plan()
    commit(world, batch, num_accepted=2)
    assert request.tokens[-3:] == [7, 7, 9]
    assert request.num_output == 4
    assert request.num_computed == len(request.tokens) - 1
    counters = world.scheduler.counters
    assert (counters.accepted_drafts, counters.rejected_drafts) == (2, 2)
    assert counters.output_tokens == 4
    assert counters.decode_tokens == 1


def test_several_tokens_of_one_step_bank_time(drafted: Any) -> None:
    world = drafted(Speculating(Parrot()))
    request = first_token(world, prompt=8, output=40, tpot_s=0.5)
    due_s = request.row.due_s
    commit(world, world.plan(), num_accepted=3)
    assert request.row.due_s == pytest.approx(due_s + 4 * 0.5)
    assert request.deadlines.num_tokens == 5
    assert request.num_late_after_first == 0


def test_late_drafts_are_late_one_by_one(drafted: Any) -> None:
    world = drafted(Speculating(Parrot()))
    request = first_token(world, prompt=8, output=40, tpot_s=0.1)
    batch = world.plan()
    world.now_s += 0.25  # three tokens are due by then, two of them before
    commit(world, batch, num_accepted=3)
    assert request.num_late_after_first == 2
    assert world.scheduler.counters.num_late_tokens == 2


def test_only_accepted_tokens_are_found_again(drafted: Any) -> None:
    """Block 3 is full of drafts, one of which is refused: nobody may find it."""
    world = drafted(Speculating(Parrot(7)))
    request = first_token(world, prompt=range(8), output=40)
    batch = world.plan()
    assert batch.rows[0].num_drafts == 7
    commit(world, batch, num_accepted=2)
    assert len(request.blocks) == 4
    assert (request.num_computed, request.num_published) == (11, 2)
    assert len(world.scheduler.blocks.match(request.chain)) == 2
    commit(world, world.plan(), num_accepted=0)
    assert (request.num_computed, request.num_published) == (12, 3)
    world.scheduler.cancel(request.id, world.now_s)
    again = world.add(world.request([*range(8), 9, 7, 7, 9, 1], output=4))
    world.plan()
    assert again.num_computed == 12


def test_drafts_never_take_the_last_blocks_nor_the_tokens_past_the_end(drafted: Any) -> None:
    tight = Limits(block_size=4, num_blocks=4, max_running=8, max_batch_tokens=64)
    world = drafted(Speculating(Parrot(8), fixed=8), limits=tight)
    first_token(world, prompt=8, output=8)
    (row,) = world.plan().rows
    assert row.num_drafts <= 3  # what its third block has room for
    world = drafted(Speculating(Parrot(8), fixed=8))
    first_token(world, prompt=8, output=4)
    (row,) = world.plan().rows
    assert row.num_drafts == 2  # three tokens are left, the last is the model's own


def test_an_end_in_the_middle_of_drafts_ends_the_request(drafted: Any) -> None:
    speculating = Speculating(drafter := Parrot())
    world = drafted(speculating)
    request = first_token(world, prompt=8, output=40)
    commit(world, world.plan(), num_accepted=1, finished=True)
    assert request.id not in world.scheduler.requests
    assert drafter.forgotten == [request.id]
    assert not request.blocks


def test_what_is_never_right_is_not_drafted_for_long_but_tried_again(drafted: Any) -> None:
    model = StepModel(w=0.01, a0=0.002, c1=0.0, a1=0.0, b=0.0, d=0.0)
    world = drafted(Speculating(Parrot()), model=model)
    first_token(world, prompt=8, output=200)
    numbers = []
    for _ in range(150):
        batch = world.plan()
        numbers.append(batch.rows[0].num_drafts)
        commit(world, batch, num_accepted=0)
    assert numbers[0] > 0
    assert sum(numbers[20:]) <= 6
    assert sum(numbers[20:]) >= 1


@pytest.mark.parametrize(("room_tokens", "num_tried"), [(2, 0), (4, 1), (9, 3)])
def test_trying_drafts_again_makes_no_step_longer_than_its_room(
    drafted: Any, room_tokens: int, num_tried: int
) -> None:
    busy = StepModel(w=0.0, a0=0.001, c1=0.0, a1=0.0, b=0.0, d=0.0)
    world = drafted(None, model=busy)
    for _ in range(3):
        world.add(world.request(1, output=40, tpot_s=10.0))
    commit(world, world.plan(), num_accepted=0)
    rows, speculating, most = world.plan().rows, Speculating(Parrot()), 0
    for row in rows:
        for _ in range(20):  # nothing that is drafted is right: it pays for nobody
            speculating.observe(row, Outcome(token_id=9, num_drafted=1))
    for _ in range(EXPLORE_STEPS):
        given = [replace(row) for row in rows]
        speculating.draft(
            given,
            holdings=world.scheduler.holdings,
            limits=world.scheduler.limits,
            model=busy,
            now_s=world.now_s,
            room_s=busy.step_s(room_tokens),
            margin_s=0.0,
            max_model_len=10_000,
        )
        most = max(most, sum(row.num_drafts for row in given))
    assert most == num_tried


def test_steps_that_take_longer_with_drafts_teach_that(drafted: Any) -> None:
    speculating = Speculating(Parrot(), fixed=4)
    world = drafted(speculating)
    first_token(world, prompt=8, output=200)
    for _ in range(60):
        batch = world.plan()
        start_s = world.now_s
        world.now_s += 1.3 * GREEDY_MODEL.step_s(batch.num_tokens)
        outcomes = {row.request.id: Outcome(token_id=9, num_drafted=4) for row in batch.rows}
        world.scheduler.commit(batch, outcomes, start_s, world.now_s)
    assert speculating.factor == pytest.approx(1.3, abs=0.05)
    assert world.plan().predicted_s == pytest.approx(1.3 * GREEDY_MODEL.step_s(5), rel=0.05)


def test_a_request_behind_its_pace_gets_drafts_where_they_do_not_pay(drafted: Any) -> None:
    """Every token takes 0.5 ms, so 41 take 20.5; the urgent one needs a token every 15."""
    busy = StepModel(w=0.0, a0=0.0, c1=0.0, a1=0.0005, b=0.0, d=0.0)
    limits = Limits(block_size=4, num_blocks=512, max_running=64, max_batch_tokens=64)
    world = drafted(Speculating(Parrot()), model=busy, limits=limits)
    for _ in range(40):
        world.add(world.request(1, output=20, tpot_s=10.0))
    urgent = world.add(world.request(1, output=20, tpot_s=0.015))
    commit(world, world.plan(), num_accepted=0)
    batch = world.plan()
    assert {row.request.id: row.num_drafts for row in batch.rows if row.num_drafts} == {
        urgent.id: 2
    }


def test_a_plan_made_beside_a_step_holds_when_drafts_gave_more(drafted: Any) -> None:
    world = drafted(Speculating(Parrot(2), fixed=2))
    first_token(world, prompt=8, output=40)
    for _ in range(4):
        batch = world.plan()
        world.foresee()
        commit(world, batch, num_accepted=1)
    assert world.scheduler.counters.num_foreseen > 0


def test_the_runner_is_asked_for_drafts_that_it_writes_itself(drafted: Any) -> None:
    world = drafted(Speculating(RunnerDrafts(), max_draft_tokens=3))
    first_token(world, prompt=8, output=40)
    batch = world.plan()
    (row,) = batch.rows
    assert 0 < row.num_drafts <= 3
    assert row.drafts == ()
    assert batch.num_draft_steps == row.num_drafts
    expected_s = GREEDY_MODEL.step_s(1 + row.num_drafts, drafts=row.num_drafts)
    assert batch.stored_s == pytest.approx(expected_s)


class Wrong(Parrot):
    """Counts how often it is asked; nobody ever says seven."""

    asked = 0

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        self.asked += 1
        return super().propose(request_id, tokens, most=most)


def test_a_group_that_is_drafted_for_in_vain_is_asked_every_so_many_steps_only(
    drafted: Any,
) -> None:
    drafter = Wrong()
    world = drafted(Speculating(drafter))

    def answers(num: int) -> int:
        """Answers one after the other; the steps they take."""
        steps = 0
        for _ in range(num):
            request = first_token(world, output=129)
            while request.id in world.scheduler.requests:
                commit(world, world.plan(), num_accepted=0)
                steps += 1
        return steps

    hopeful = answers(10)
    before = drafter.asked
    assert before > 500
    in_vain = answers(10)
    assert hopeful == in_vain == 1280
    assert drafter.asked - before <= in_vain / EXPLORE_STEPS


def test_many_streams_are_asked_for_as_long_as_their_drafts_are_right(drafted: Any) -> None:
    """Asking 40 times takes 0.4 ms beside a step of 10: it must pay, not be cheap."""
    limits = Limits(block_size=4, num_blocks=2048, max_running=64, max_batch_tokens=512)
    world = drafted(Speculating(Parrot()), limits=limits)
    for _ in range(40):
        world.add(world.request(1, output=60, tpot_s=10.0))
    commit(world, world.plan(), num_accepted=0)
    for _ in range(5):
        batch = world.plan()
        assert min(row.num_drafts for row in batch.rows) >= 2
        commit(world, batch, num_accepted=4)
