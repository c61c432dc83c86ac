"""The play-forward by itself."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.planner.feasibility import Decode, Field, Job, Machine, play

MODEL = StepModel(w=0.004, a0=0.00003, c1=0.003, a1=0.00008, b=6e-8, d=3e-8)
MACHINE = Machine(MODEL, limit_s=0.02, max_batch_tokens=8192)


def a_job(id: int, *, due_s: float, rem: int, left: int = 0, tpot_s: float = 0.05) -> Job:
    return Job(due_s, id, rem, 0, tpot_s, False, left)


def test_a_lone_prompt_takes_full_steps_until_it_is_done() -> None:
    result = play(Field([]), [a_job(1, due_s=1.0, rem=1000)], MACHINE)
    assert result.ok
    chunk = MODEL.max_chunk(0.02, num_tokens=0, context=0, pairs=0, prior=0)
    assert result.first.chunks == ((1, chunk),)
    assert result.first.busy
    (_, at_s), *_ = result.finished
    work_s = 1000 * MODEL.a1 + MODEL.d * 1000 * 500
    steps = -(-work_s // (0.02 - MODEL.c1))
    assert at_s == pytest.approx(work_s + steps * MODEL.c1, rel=0.02)


def test_the_first_late_prompt_is_named() -> None:
    jobs = [a_job(1, due_s=0.05, rem=300), a_job(2, due_s=0.06, rem=600)]
    result = play(Field([]), jobs, MACHINE)
    assert (result.ok, result.reason, result.late_id) == (False, Reason.TTFT, 2)


def test_a_step_ends_before_the_earliest_decode_is_due() -> None:
    field = Field([Decode(0.011, 0.05, 500, 100)])
    result = play(field, [a_job(1, due_s=1.0, rem=1000)], MACHINE)
    assert result.ok
    assert result.first.predicted_s <= 0.011


def test_decodes_that_can_wait_another_step_stay_out() -> None:
    field = Field([Decode(0.03, 0.05, 500, 100), Decode(0.5, 0.05, 500, 100)])
    jobs = [a_job(1, due_s=1.0, rem=1000)]
    assert 0.03 < play(field, jobs, MACHINE).first.cut_s < 0.5
    assert play(field, jobs, MACHINE, lockstep=True).first.cut_s == inf
    assert play(field, [], MACHINE).first.cut_s == inf  # nothing waits: run ahead


def test_a_hundred_ms_class_takes_every_second_step_beside_a_fifty() -> None:
    slow = StepModel(w=0.02, a0=0.0, c1=0.02, a1=1e-4, b=0.0, d=0.0)
    machine = Machine(slow, limit_s=0.05, max_batch_tokens=8192)
    field = Field([Decode(0.05, 0.05, 10, 100), Decode(0.15, 0.1, 10, 100)])
    jobs = [a_job(1, due_s=9.0, rem=5000)]
    assert play(field, jobs, machine).first.cut_s == pytest.approx(0.1)


def test_too_many_decodes_for_their_pace_are_refused_by_the_fluid_test() -> None:
    field = Field([Decode(0.04 + 0.002 * i, 0.05, 1000, 500) for i in range(400)])
    result = play(field, [], MACHINE)
    assert (result.ok, result.reason) == (False, Reason.TPOT)


def test_a_crowd_that_soon_ends_is_no_reason_to_refuse() -> None:
    crowd = Field([Decode(0.2 + 0.01 * i, 0.05, 1000, 2) for i in range(90)])
    assert play(crowd, [a_job(1, due_s=2.0, rem=500, left=3)], MACHINE).ok


def test_bank_lets_a_prompt_in_that_would_not_fit_without() -> None:
    jobs = [a_job(1, due_s=0.125, rem=1000, left=10)]
    poor = Field([Decode(0.03, 0.05, 500, 100) for _ in range(60)])
    rich = Field([Decode(0.6, 0.05, 500, 100) for _ in range(60)])
    assert not play(poor, jobs, MACHINE).ok
    assert play(rich, jobs, MACHINE).ok


def test_an_anchored_first_token_keeps_its_own_clock() -> None:
    late_clock = Job(1.0, 1, 100, 0, 0.001, True, 5)  # due at 1.0, 1.001, ...
    own_clock = Job(1.0, 1, 100, 0, 0.001, False, 5)  # a token every ms from its emission on
    assert play(Field([]), [late_clock], MACHINE).ok
    assert play(Field([]), [own_clock], MACHINE).reason is Reason.TPOT


def test_the_reserve_is_part_of_every_step() -> None:
    job = [a_job(1, due_s=1.0, rem=2000)]
    kept = play(Field([]), job, MACHINE._replace(reserve_s=0.005))
    free = play(Field([]), job, MACHINE)
    assert kept.first.chunks[0][1] < free.first.chunks[0][1]
    assert kept.finished[0][1] > free.finished[0][1]


@given(
    decodes=st.lists(
        st.builds(
            Decode,
            due_s=st.floats(0.03, 1.0),
            tpot_s=st.sampled_from((0.05, 0.1, 0.2)),
            context=st.integers(10, 2000),
            left=st.integers(1, 400),
        ),
        max_size=30,
    ),
    rems=st.lists(st.tuples(st.integers(1, 3000), st.floats(0.05, 3.0)), min_size=1, max_size=6),
)
def test_the_first_step_fits_its_cap_and_the_work(
    decodes: list[Decode], rems: list[tuple[int, float]]
) -> None:
    jobs = sorted(a_job(i, due_s=due, rem=rem, left=5) for i, (rem, due) in enumerate(rems))
    result = play(Field(decodes), jobs, MACHINE)
    first = result.first
    planned = dict(first.chunks)
    for job in jobs:
        assert 0 <= planned.get(job.id, 0) <= job.rem
    batch = [d for d in decodes if d.due_s < first.cut_s]
    tokens = len(batch) + sum(planned.values())
    pairs = sum(n * n / 2 for n in planned.values())
    actual_s = MODEL.step_s(tokens, context=float(sum(d.context for d in batch)), pairs=pairs)
    if first.chunks and result.ok:
        assert actual_s == pytest.approx(first.predicted_s, abs=1e-9)
        assert actual_s <= max(0.02, min(d.due_s for d in decodes) if decodes else 0.02) + 1e-9
    if result.ok:
        assert all(at <= dict((j.id, j.due_s) for j in jobs)[i] + 1e-6 for i, at in result.finished)
