"""What the `sloserve` policy decides, request by request."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.planner import Limits, Row, Snapshot, Tier
from sloserve.planner.policies import make_policy
from sloserve.planner.policy import SloservePolicy

TINY_CPU = StepModel(w=0.004, a0=0.00003, c1=0.003, a1=0.00008, b=6e-8, d=3e-8)

Rows = Callable[..., Row]
Snapshots = Callable[..., Snapshot]


def a_busy_prefill(a_row: Rows, id: int = 1, **changes: object) -> Row:
    """5000 tokens that run and must be done in 0.8 s: about all the machine can do."""
    values: dict[str, object] = {
        "num_known": 5000,
        "due_s": 0.95,
        "running": True,
        "num_blocks": 313,
    }
    values.update(changes)
    return a_row(id, **values)


def test_an_idle_replica_admits_at_once_and_starts(a_row: Rows, a_snapshot: Snapshots) -> None:
    plan = make_policy("sloserve").plan(a_snapshot([], [a_row(1)]))
    assert plan.admitted == (1,)
    assert plan.tokens == {1: 100}
    assert plan.predicted_s == pytest.approx(0.01115, rel=0.05)


def test_newcomers_who_all_fit_cost_one_play_forward(a_row: Rows, a_snapshot: Snapshots) -> None:
    policy = SloservePolicy()
    plan = policy.plan(a_snapshot([], [a_row(i, due_s=1.0) for i in range(1, 6)]))
    assert set(plan.tokens) == {1, 2, 3, 4, 5}
    assert policy.num_runs == 1


def test_nothing_to_do_is_an_empty_plan(a_snapshot: Snapshots) -> None:
    assert make_policy("sloserve").plan(a_snapshot()).tokens == {}


def test_the_hopeless_is_told_at_once_with_the_numbers(a_row: Rows, a_snapshot: Snapshots) -> None:
    plan = make_policy("sloserve").plan(a_snapshot([], [a_row(1, num_known=4000, due_s=0.1)]))
    verdict = plan.infeasible[1]
    assert verdict.reason is Reason.TTFT
    assert verdict.earliest_first_token_s > 0.3
    assert verdict.retry_after_s > 0.2
    assert "0.100 s" in verdict.message


def test_who_may_wait_is_deferred_and_told_when_waiting_can_not_help_any_more(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    policy = make_policy("sloserve")
    busy, new = a_busy_prefill(a_row), a_row(2, num_known=2000, due_s=0.6)
    plan = policy.plan(a_snapshot([busy], [new]))
    assert plan.infeasible == {}
    assert plan.admitted == ()
    assert 2 not in plan.tokens
    later = policy.plan(a_snapshot([busy], [new], now_s=0.3))
    assert later.infeasible == {}
    too_late = policy.plan(a_snapshot([], [new], now_s=0.45))
    assert set(too_late.infeasible) == {2}


def test_who_may_not_wait_gets_the_answer_now(a_row: Rows, a_snapshot: Snapshots) -> None:
    new = a_row(2, num_known=2000, due_s=0.6, may_wait=False)
    plan = make_policy("sloserve").plan(a_snapshot([a_busy_prefill(a_row)], [new]))
    verdict = plan.infeasible[2]
    assert verdict.reason is Reason.TTFT
    assert verdict.earliest_first_token_s > 0.6
    assert verdict.retry_after_s > 0


def test_a_deferred_request_gets_in_when_somebody_leaves(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    policy = make_policy("sloserve")
    busy, new = a_busy_prefill(a_row), a_row(2, num_known=2000, due_s=0.6)
    assert policy.plan(a_snapshot([busy], [new])).admitted == ()
    assert 2 in policy.plan(a_snapshot([], [new], now_s=0.05)).tokens


def test_a_short_newcomer_takes_the_place_of_a_long_one_that_has_not_started(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    policy = make_policy("sloserve")
    busy = a_busy_prefill(a_row, num_known=1500, due_s=0.25, num_blocks=94)
    long = a_row(2, num_known=4000, due_s=0.86)
    assert 2 not in policy.plan(a_snapshot([busy], [long])).infeasible
    short = a_row(3, num_known=900, due_s=0.7, may_wait=False)
    plan = policy.plan(a_snapshot([busy], [long, short]))
    assert plan.admitted == (3,)
    assert plan.infeasible == {}  # the long one waits on, while it can


def test_kv_that_would_run_out_is_named_as_the_reason(a_row: Rows, a_snapshot: Snapshots) -> None:
    limits = Limits(block_size=16, num_blocks=100)
    holder = a_row(
        1,
        num_known=1000,
        num_computed=999,
        num_output=1,
        anchored=True,
        expected_output=200.0,
        max_output=200,
        due_s=0.3,
        running=True,
        num_blocks=63,
    )
    new = a_row(2, num_known=500, may_wait=False, expected_output=100.0, max_output=100)
    plan = make_policy("sloserve").plan(a_snapshot([holder], [new], limits=limits))
    verdict = plan.infeasible[2]
    assert verdict.reason is Reason.KV
    assert verdict.retry_after_s > 0.1


def a_decode(a_row: Rows, id: int, **changes: object) -> Row:
    values: dict[str, object] = {
        "num_known": 500,
        "num_computed": 499,
        "num_output": 3,
        "anchored": True,
        "due_s": 0.05,
        "running": True,
        "num_blocks": 32,
        "expected_output": 50.0,
        "max_output": 50,
    }
    values.update(changes)
    return a_row(id, **values)


def test_slots_that_are_all_taken_are_named_and_retried_when_one_should_be_free(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    limits = Limits(block_size=16, num_blocks=8192, max_running=4)
    running = [
        a_decode(a_row, i, due_s=0.3, tpot_s=0.3, expected_output=100.0 * i, max_output=400)
        for i in (1, 2, 3, 4)
    ]
    new = a_row(9, due_s=0.5, may_wait=False)
    snapshot = a_snapshot(running, [new], limits=limits)
    verdict = make_policy("sloserve").plan(snapshot).infeasible[9]
    assert verdict.reason is Reason.TTFT, "a first token that must wait for somebody's end"
    assert "4 requests run" in verdict.message
    assert "engine.maxRunning" in verdict.message
    first_end_s = 100 * snapshot.model.step_s(4, context=4 * 500.0)
    assert verdict.retry_after_s == pytest.approx(first_end_s, rel=0.05)
    assert verdict.earliest_first_token_s > verdict.retry_after_s
    again = a_snapshot(running[1:], [new], limits=limits)
    assert make_policy("sloserve").plan(again).admitted == (9,), "one slot is enough for it"


def test_of_two_that_come_for_one_slot_the_other_is_told_when_somebody_ends(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    limits = Limits(block_size=16, num_blocks=8192, max_running=2)
    running = [a_decode(a_row, 1, due_s=0.3, tpot_s=0.3, expected_output=100.0, max_output=400)]
    new = [
        a_row(i, due_s=0.05 * i, expected_output=300.0, max_output=300, may_wait=False)
        for i in (8, 9)
    ]
    plan = make_policy("sloserve").plan(a_snapshot(running, new, limits=limits))
    assert len(plan.admitted) == 1
    (refused,) = plan.infeasible
    step_s = a_snapshot().model.step_s(2, context=500.0)
    assert plan.infeasible[refused].retry_after_s == pytest.approx(100 * step_s, rel=0.05)


def test_a_pace_that_can_not_be_kept_is_named_as_the_reason(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    running = [
        a_decode(a_row, i, tpot_s=0.05, due_s=0.04 + 0.0001 * i, max_output=999) for i in range(200)
    ]
    new = a_row(900, tpot_s=0.004, due_s=2.0, expected_output=90.0, max_output=90, may_wait=False)
    plan = make_policy("sloserve").plan(a_snapshot(running, [new]))
    assert plan.infeasible[900].reason is Reason.TPOT


def test_a_lost_promise_is_relegated_at_once(a_row: Rows, a_snapshot: Snapshots) -> None:
    lost = a_decode(a_row, 1, due_s=-0.001)
    broken = a_decode(a_row, 2, due_s=5.0, kept=False)
    fine = a_decode(a_row, 3)
    plan = make_policy("sloserve").plan(a_snapshot([lost, broken, fine]))
    assert plan.relegated == (1, 2)
    assert 3 in plan.tokens


def test_when_the_model_erred_one_gives_way_and_the_others_stay(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    policy = make_policy("sloserve")
    running = [a_row(i, num_known=2500, due_s=0.55, running=True, num_blocks=157) for i in (1, 2)]
    plan = policy.plan(a_snapshot(running, [a_row(3, num_known=50, may_wait=False)]))
    assert len(plan.relegated) == 1
    assert plan.tokens.keys() & {1, 2} - set(plan.relegated)


def test_a_small_error_costs_the_margin_not_a_promise(a_row: Rows, a_snapshot: Snapshots) -> None:
    row = a_row(1, num_known=1000, due_s=0.12, running=True, num_blocks=63)
    plan = make_policy("sloserve").plan(a_snapshot([row], margin_s=0.02))
    assert plan.relegated == ()
    assert plan.tokens[1] > 0


# --- best effort ----------------------------------------------------------------------


def test_best_effort_gets_what_is_left_of_a_step(a_row: Rows, a_snapshot: Snapshots) -> None:
    waits = a_row(2, tier=Tier.BEST_EFFORT, num_known=4000, due_s=-1.0)
    plan = make_policy("sloserve").plan(a_snapshot([a_decode(a_row, 1, due_s=0.06)], [], [waits]))
    assert plan.tokens[1] == 1
    assert 100 < plan.tokens[2] < 800


def test_best_effort_moves_on_even_when_promised_prefills_take_every_step(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    waits = a_row(2, tier=Tier.BEST_EFFORT, num_known=4000, due_s=-1.0)
    busy = a_busy_prefill(a_row, due_s=2.0)
    young = make_policy("sloserve").plan(a_snapshot([busy], [], [waits]))
    old = make_policy("sloserve").plan(
        a_snapshot([replace(busy, due_s=102.0)], [], [waits], now_s=100.0)
    )
    assert 0 < young.tokens[2] < old.tokens[2] < 200


def test_best_effort_runs_on_a_machine_whose_tokens_cost_nothing(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    flat = StepModel(w=0.01, a0=0.0, c1=0.01, a1=0.0, b=0.0, d=0.0)
    waits = a_row(2, tier=Tier.BEST_EFFORT, num_known=4000, due_s=-1.0)
    plan = make_policy("sloserve").plan(
        a_snapshot([a_decode(a_row, 1, due_s=0.06)], [], [waits], model=flat)
    )
    assert plan.tokens == {1: 1, 2: 4000}


def test_best_effort_that_comes_after_a_promise_does_not_break_it(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    waits = a_row(2, tier=Tier.BEST_EFFORT, num_known=4000, due_s=-1.0)

    def relegated(due_s: float, best_effort: list[Row]) -> tuple[int, ...]:
        busy = a_busy_prefill(a_row, due_s=due_s)
        asks = a_row(3, due_s=100 + due_s, may_wait=False)  # makes the policy look again
        snapshot = a_snapshot([replace(busy, due_s=100 + due_s)], [asks], best_effort, now_s=100.0)
        return make_policy("sloserve").plan(snapshot).relegated

    tight_s = next(due / 1000 for due in range(500, 5000) if not relegated(due / 1000, []))
    assert relegated(tight_s, [waits]) == ()


def test_best_effort_does_not_start_into_the_last_blocks(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    limits = Limits(block_size=16, num_blocks=40)
    waits = a_row(2, tier=Tier.BEST_EFFORT, num_known=120, due_s=-1.0)
    decode = a_decode(a_row, 1, expected_output=2.0, max_output=2)
    plan = make_policy("sloserve").plan(a_snapshot([decode], [], [waits], limits=limits))
    assert plan.tokens == {1: 1}


def test_best_effort_with_the_least_progress_gives_its_blocks(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    limits = Limits(block_size=16, num_blocks=60)
    some = a_row(
        2, tier=Tier.BEST_EFFORT, num_known=400, num_computed=320, num_blocks=20, due_s=-1.0
    )
    less = a_row(
        3, tier=Tier.BEST_EFFORT, num_known=400, num_computed=160, num_blocks=10, due_s=-1.0
    )
    new = a_row(4, num_known=600, max_output=1, expected_output=1.0)
    plan = make_policy("sloserve").plan(a_snapshot([], [new], [some, less], limits=limits))
    assert plan.tokens[4] > 480
    assert plan.preempted == (3,)


def test_slack_that_appears_in_time_gives_the_promise_back(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    policy = make_policy("sloserve")
    degraded = a_row(2, tier=Tier.BEST_EFFORT, num_known=300, due_s=5.0)
    promoted: set[int] = set()
    for step in range(20):
        promoted.update(policy.plan(a_snapshot([], [], [degraded], now_s=0.001 * step)).promoted)
    assert promoted == {2}


# --- properties -----------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    prompt=st.integers(10, 4000),
    ttft_s=st.floats(0.05, 1.5),
    tpot_s=st.floats(0.01, 0.2),
    looser_ttft=st.floats(0.0, 2.0),
    looser_tpot=st.floats(0.0, 0.2),
    others=st.lists(
        st.tuples(st.floats(0.03, 1.0), st.sampled_from((0.05, 0.1))), min_size=0, max_size=30
    ),
    backlog=st.integers(0, 4000),
)
def test_a_looser_promise_is_never_declined_where_a_tighter_one_is_admitted(
    prompt: int,
    ttft_s: float,
    tpot_s: float,
    looser_ttft: float,
    looser_tpot: float,
    others: list[tuple[float, float]],
    backlog: int,
) -> None:
    def row(id: int, **changes: object) -> Row:
        values: dict[str, object] = {
            "tier": Tier.PROMISED,
            "arrival_s": 0.0,
            "num_known": 300,
            "num_computed": 299,
            "num_output": 2,
            "tightest_tpot_s": 0.05,
            "anchored": True,
            "expected_output": 40.0,
            "expected_sd": 0.0,
            "max_output": 40,
            "weight": 1.0,
            "num_blocks": 19,
            "running": True,
            "may_wait": False,
        }
        values.update(changes)
        return Row(id=id, **values)  # type: ignore[arg-type]

    def admitted(ttft: float, tpot: float) -> bool:
        fresh: dict[str, object] = {"num_computed": 0, "num_output": 0, "anchored": False}
        running = [row(i, due_s=due, tpot_s=pace) for i, (due, pace) in enumerate(others)]
        if backlog:
            running.append(row(500, num_known=backlog, due_s=0.8, tpot_s=0.1, **fresh))
        new = row(900, num_known=prompt, due_s=ttft, tpot_s=tpot, running=False, **fresh)
        snapshot = Snapshot(
            now_s=0.0,
            model=TINY_CPU,
            margin_s=0.0,
            limits=Limits(block_size=16, num_blocks=8192),
            free_blocks=6000,
            running=running,
            waiting=[new],
            best_effort=[],
        )
        plan = make_policy("sloserve").plan(snapshot)
        return 900 in plan.admitted and not plan.relegated

    if admitted(ttft_s, tpot_s):
        assert admitted(ttft_s + looser_ttft, tpot_s)
        assert admitted(ttft_s, tpot_s + looser_tpot)
