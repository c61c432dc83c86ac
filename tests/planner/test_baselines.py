"""The baselines, each pinned by examples worked out by hand."""

from collections.abc import Callable

import pytest

from sloserve.errors import BadInput
from sloserve.planner import Limits, Plan, Row, Snapshot
from sloserve.planner.policies import make_policy, parse_policy

Rows = Callable[..., Row]
Snapshots = Callable[..., Snapshot]


@pytest.fixture
def a_decode(a_row: Rows) -> Rows:
    """A request that decodes, with the blocks it needs."""

    def make(id: int, known: int = 33, **changes: object) -> Row:
        values: dict[str, object] = {
            "num_known": known,
            "num_computed": known - 1,
            "num_output": 1,
            "running": True,
            "anchored": True,
            "num_blocks": -(-(known - 1) // 16),
        }
        values.update(changes)
        return a_row(id, **values)

    return make


def test_fcfs_serves_the_running_in_order_then_starts_the_waiting(
    a_row: Rows, a_decode: Rows, a_snapshot: Snapshots
) -> None:
    part = a_row(2, num_known=300, num_computed=160, running=True, num_blocks=10)
    snapshot = a_snapshot([a_decode(1), part], [a_row(3, num_known=90), a_row(4, num_known=90)])
    plan = make_policy("fcfs", max_batch_tokens=256).plan(snapshot)
    # 1 + the rest of the second's prefill (140) + all of the third (90) + 25 of the fourth
    assert plan.tokens == {1: 1, 2: 140, 3: 90, 4: 25}
    assert plan.admitted == (3, 4)


def test_fcfs_preempts_the_latest_admitted_and_then_starts_nobody(
    a_row: Rows, a_decode: Rows, a_snapshot: Snapshots
) -> None:
    running = [a_decode(1), a_decode(2), a_decode(3)]  # 32 computed: each needs a third block
    limits = Limits(block_size=16, num_blocks=6)
    plan = make_policy("fcfs").plan(a_snapshot(running, [a_row(4)], limits=limits))
    assert plan.preempted == (3,)
    assert plan.tokens == {1: 1, 2: 1}
    assert plan.admitted == ()


def test_fcfs_starts_the_preempted_before_newcomers(a_row: Rows, a_snapshot: Snapshots) -> None:
    back = a_row(1, num_known=50, num_output=5, running=True, anchored=True)
    plan = make_policy("fcfs", max_batch_tokens=64).plan(a_snapshot([back], [a_row(2)]))
    assert plan.tokens == {1: 50, 2: 14}


def test_fcfs_stops_at_the_first_that_finds_no_blocks(a_row: Rows, a_snapshot: Snapshots) -> None:
    limits = Limits(block_size=16, num_blocks=10)
    waiting = [a_row(1, num_known=140), a_row(2, num_known=150), a_row(3, num_known=10)]
    plan = make_policy("fcfs").plan(a_snapshot([], waiting, limits=limits))
    assert plan.tokens == {1: 140}


def test_fcfs_keeps_to_the_number_of_slots(a_row: Rows, a_snapshot: Snapshots) -> None:
    limits = Limits(block_size=16, num_blocks=100, max_running=2)
    plan = make_policy("fcfs").plan(
        a_snapshot([], [a_row(i, num_known=10) for i in (1, 2, 3)], limits=limits)
    )
    assert plan.admitted == (1, 2)


def edf(snapshot: Snapshot, name: str = "edf", **params: float) -> Plan:
    return make_policy(name, min_batch_tokens=32, grid_tokens=16, **params).plan(snapshot)


def test_edf_serves_the_earliest_deadline_first(a_row: Rows, a_snapshot: Snapshots) -> None:
    waiting = [a_row(1, num_known=400, due_s=3.0), a_row(2, num_known=200, due_s=1.0)]
    plan = edf(a_snapshot([], waiting), max_batch_tokens=256)
    assert plan.tokens == {2: 200, 1: 56}


def test_edf_leans_to_short_prompts_with_alpha(a_row: Rows, a_snapshot: Snapshots) -> None:
    waiting = [a_row(1, num_known=100, due_s=1.5), a_row(2, num_known=1000, due_s=1.0)]
    assert next(iter(edf(a_snapshot([], waiting)).tokens)) == 2
    assert next(iter(edf(a_snapshot([], waiting), alpha_s=0.001).tokens)) == 1


def test_edf_limits_the_step_to_the_slack_of_the_decodes(
    a_row: Rows, a_decode: Rows, a_snapshot: Snapshots
) -> None:
    # 1.2 * T <= 24 ms leaves 20 ms: 3 + 0.08 * 205 + attention of 204 tokens; a multiple of 16
    snapshot = a_snapshot([a_decode(1, due_s=0.024)], [a_row(2, num_known=1000)])
    assert edf(snapshot).tokens == {1: 1, 2: 191}
    late = a_snapshot([a_decode(1, due_s=0.001)], [a_row(2, num_known=1000)])
    assert edf(late).tokens == {1: 1, 2: 31}  # never below the floor


def test_edf_serves_even_the_hopeless_and_edf_drop_rejects_them(
    a_row: Rows, a_decode: Rows, a_snapshot: Snapshots
) -> None:
    rows = [a_row(1, num_known=4000, due_s=0.1), a_row(2, num_known=100, due_s=0.5)]
    assert edf(a_snapshot([], rows)).infeasible == {}
    plan = edf(a_snapshot([], rows), "edf-drop")
    assert set(plan.infeasible) == {1}
    assert plan.infeasible[1].retry_after_s > 0
    assert plan.admitted == (2,)


def test_edf_drop_gives_up_who_has_missed(
    a_row: Rows, a_decode: Rows, a_snapshot: Snapshots
) -> None:
    late = a_decode(1, due_s=-0.01)
    part = a_row(2, num_known=3000, num_computed=16, num_blocks=1, running=True, due_s=0.05)
    good = a_decode(3, due_s=0.2)
    assert edf(a_snapshot([late, part, good])).relegated == ()
    assert edf(a_snapshot([late, part, good]), "edf-drop").relegated == (1, 2)


def test_edf_takes_the_blocks_of_a_whole_prompt_at_its_start(
    a_row: Rows, a_snapshot: Snapshots
) -> None:
    limits = Limits(block_size=16, num_blocks=40)
    waiting = [a_row(1, num_known=640, due_s=1.0), a_row(2, num_known=320, due_s=2.0)]
    half = [a_row(3, num_known=400, num_computed=16, num_blocks=20, running=True, due_s=9.0)]
    plan = edf(a_snapshot(half, waiting, limits=limits))
    assert 1 not in plan.tokens  # 40 blocks are not there, 20 are
    assert 2 not in plan.tokens or plan.tokens[2] <= 320


def test_a_policy_can_be_typed_with_its_parameters() -> None:
    assert parse_policy("edf-drop:max_batch_tokens=256,safety=1.5") == (
        "edf-drop",
        {"max_batch_tokens": 256, "safety": 1.5},
    )
    assert make_policy("sloserve:step_limit_factor=6").name == "sloserve"


@pytest.mark.parametrize("text", ["sjf", "fcfs:max_batch_tokens", "fcfs:chunk=12", "edf:safety=x"])
def test_an_unknown_policy_or_parameter_is_a_clear_error(text: str) -> None:
    with pytest.raises(BadInput):
        make_policy(text)
