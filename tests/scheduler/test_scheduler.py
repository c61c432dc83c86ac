"""The scheduler: decisions, preemption, classes, promises kept and counted."""

from collections.abc import Callable
from typing import Any

import pytest

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.planner import Limits, Plan, Snapshot, Verdict
from sloserve.scheduler import Outcome, PromiseBroken, Status
from sloserve.slo import Decision, OnInfeasible, Stage

TIGHT = Limits(block_size=4, num_blocks=10, max_running=8, max_batch_tokens=64)


def following(*plans: Plan | Callable[[Snapshot], Plan]) -> Any:
    """A policy's `plan` that gives these plans in turn."""
    left = list(plans)

    def plan(snapshot: Snapshot) -> Plan:
        following_plan = left.pop(0)
        return following_plan if isinstance(following_plan, Plan) else following_plan(snapshot)

    return plan


def test_requests_run_to_their_end_and_leave_nothing_behind(a_world: Any) -> None:
    world = a_world(prefix_caching=False)
    requests = [world.add(world.request(20, output=10)) for _ in range(12)]
    world.run()
    assert all(r.status is Status.FINISHED and r.num_output == 10 for r in requests)
    assert world.scheduler.blocks.num_free == 64
    assert world.scheduler.blocks.num_cached == 0
    assert not world.scheduler.requests
    assert world.scheduler.counters.num_policy_errors == 0


def test_admitted_at_once_or_deferred(a_world: Any) -> None:
    world = a_world(limits=Limits(block_size=4, num_blocks=64, max_running=1, max_batch_tokens=64))
    first, second = world.add(world.request()), world.add(world.request())
    world.run()
    assert [(i, d) for i, d, _ in world.decisions] == [
        (first.id, Decision.ADMITTED),
        (second.id, Decision.DEFERRED),
    ]


@pytest.mark.parametrize(
    ("on_infeasible", "last_hop", "decision"),
    [
        (OnInfeasible.DEGRADE, True, Decision.DEGRADED),
        (OnInfeasible.DEGRADE, False, Decision.DECLINED),
        (OnInfeasible.DECLINE, True, Decision.DECLINED),
        (OnInfeasible.DECLINE, False, Decision.DECLINED),
    ],
)
def test_the_infeasible_is_degraded_only_where_that_is_wanted_and_nobody_else_is_left(
    world: Any, on_infeasible: OnInfeasible, last_hop: bool, decision: Decision
) -> None:
    late = world.request(ttft_s=0.0, on_infeasible=on_infeasible, last_hop=last_hop)
    world.now_s = 1.0
    world.add(late)
    world.run()
    assert [(i, d) for i, d, _ in world.decisions] == [(late.id, decision)]
    verdict = world.decisions[0][2]
    assert verdict is not None
    assert verdict.reason is Reason.TTFT
    assert verdict.retry_after_s == 0.5
    served = decision is Decision.DEGRADED
    assert late.num_output == (4 if served else 0)
    assert late.status is (Status.FINISHED if served else Status.DECLINED)
    goes_on_elsewhere = decision is Decision.DECLINED and not last_hop
    assert world.scheduler.counters.eligible["chat"] == (0 if goes_on_elsewhere else 1)
    assert world.scheduler.counters.attained["chat", "all"] == 0


def test_a_full_queue_declines_with_the_time_it_takes_to_empty(a_world: Any) -> None:
    world = a_world(max_waiting=2)
    for _ in range(3):
        world.add(world.request(60))
    (last, decision, verdict) = world.scheduler.decisions()[0]
    assert last.id == 3
    assert decision is Decision.DECLINED
    assert verdict is not None
    assert verdict.reason is Reason.QUEUE_FULL
    assert verdict.retry_after_s >= 1.0


def test_what_can_never_fit_is_declined_at_once(a_world: Any) -> None:
    world = a_world(limits=TIGHT)
    world.add(world.request(30, output=11))
    world.add(world.request(30, output=10))
    (declined, decision, verdict) = world.scheduler.decisions()[0]
    assert (declined.id, decision) == (1, Decision.DECLINED)
    assert verdict is not None
    assert verdict.reason is Reason.KV
    assert "11 KV blocks" in verdict.message
    world.run()
    assert world.scheduler.counters.attained["chat", "all"] == 1


def test_preemption_keeps_tokens_and_recomputes_them(a_world: Any) -> None:
    world = a_world(limits=TIGHT, prefix_caching=False)
    requests = [world.add(world.request(10, output=12)) for _ in range(3)]
    world.run()
    assert world.scheduler.counters.num_preemptions > 0
    assert [r.num_output for r in requests] == [12, 12, 12]
    assert [r.tokens[10:] for r in requests] == [list(range(7, 19))] * 3
    assert world.scheduler.counters.num_policy_errors == 0


def test_a_policy_that_forgets_blocks_costs_best_effort_first(a_world: Any) -> None:
    world = a_world(limits=TIGHT, prefix_caching=False)
    promised, other = world.request(16), world.request(16, on_infeasible=OnInfeasible.DEGRADE)
    world.add(promised)
    world.add(other)
    hopeless = {other.id: Verdict(Reason.TPOT, "no", 0.0, 0.0)}
    world.policy.instead = following(
        Plan(tokens={other.id: 16}, infeasible=hopeless, admitted=(promised.id,)),
        Plan(tokens={promised.id: 8}),
        Plan(tokens={promised.id: 8}),
        Plan(tokens={promised.id: 1, other.id: 1}),
    )
    big = world.request(17)
    for _ in range(4):
        world.step()
    assert other.num_preemptions == 0
    world.add(big)
    world.policy.instead = following(Plan(tokens={big.id: 17}, admitted=(big.id,)))
    batch = world.step()
    assert [row.request.id for row in batch.rows] == [big.id]
    assert (other.num_preemptions, promised.num_preemptions) == (1, 0)
    assert world.scheduler.counters.num_policy_errors == 1


def test_when_nobody_finds_a_block_the_last_one_admitted_gives_way(a_world: Any) -> None:
    world = a_world(limits=TIGHT, prefix_caching=False)
    first, second = world.add(world.request(20, output=8)), world.add(world.request(20, output=8))

    def greedy(snapshot: Snapshot) -> Plan:
        rows = [*snapshot.running, *snapshot.waiting]
        admitted = tuple(row.id for row in snapshot.waiting)
        return Plan(tokens={row.id: row.num_left for row in rows}, admitted=admitted)

    world.policy.instead = greedy
    world.run()
    assert (first.num_output, second.num_output) == (8, 8)
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert world.scheduler.counters.num_policy_errors > 0


def test_a_policy_that_is_stuck_among_holders_is_helped_out(world: Any) -> None:
    first, second = world.add(world.request(20, output=1)), world.add(world.request(20, output=1))
    world.policy.instead = following(
        Plan(tokens={first.id: 8, second.id: 8}, admitted=(first.id, second.id)),
        Plan(),
        Plan(tokens={first.id: 12}),
    )
    world.step()
    batch = world.step()
    assert [row.request.id for row in batch.rows] == [first.id]
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert world.scheduler.counters.num_policy_errors == 1


def test_nonsense_in_a_plan_is_counted_and_ignored(world: Any) -> None:
    request = world.add(world.request())
    world.policy.instead = following(
        Plan(
            tokens={99: 4, request.id: 0},
            preempted=(request.id, 98),
            relegated=(request.id,),
            promoted=(request.id,),
            admitted=(97,),
            infeasible={96: Verdict(Reason.KV, "", 0.0, 0.0)},
        ),
        Plan(tokens={request.id: 10_000}, admitted=(request.id,)),
    )
    assert world.step() is None
    batch = world.step()
    assert [(row.start, row.count, row.sample) for row in batch.rows] == [(0, 8, True)]
    assert world.scheduler.counters.num_policy_errors == 8


def test_a_prefill_may_begin_before_the_promise_is_made_but_not_end(world: Any) -> None:
    request = world.add(world.request(20, output=2))
    world.policy.instead = following(
        Plan(tokens={request.id: 8}),
        Plan(tokens={request.id: 12}),
        Plan(tokens={request.id: 12}, admitted=(request.id,)),
        Plan(tokens={request.id: 1}),
    )
    world.step()
    row = request.row
    assert (request.decision, row.running, row.num_computed, row.num_blocks) == (None, False, 8, 2)
    assert world.step() is None
    assert world.scheduler.counters.num_policy_errors == 1
    world.step()
    world.step()
    assert request.status is Status.FINISHED
    assert request.decision is Decision.ADMITTED  # it never had to wait


@pytest.mark.parametrize("on_infeasible", OnInfeasible)
def test_a_prefill_begun_in_vain_gives_its_blocks_back_or_goes_on_without_promise(
    world: Any, on_infeasible: OnInfeasible
) -> None:
    request = world.add(world.request(20, output=1, on_infeasible=on_infeasible))
    no = {request.id: Verdict(Reason.TPOT, "no", 0.0, 0.0)}
    world.policy.instead = following(
        Plan(tokens={request.id: 8}), Plan(infeasible=no), Plan(tokens={request.id: 12})
    )
    world.step()
    world.step()
    degrades = on_infeasible is OnInfeasible.DEGRADE
    assert request.status is (Status.FINISHED if degrades else Status.DECLINED)
    assert world.scheduler.blocks.num_free == 64


def test_a_relegated_request_is_served_without_its_promise_and_may_get_it_back(world: Any) -> None:
    request = world.add(world.request(8, output=3))
    world.policy.instead = following(
        Plan(tokens={request.id: 4}, admitted=(request.id,)),
        Plan(tokens={request.id: 2}, relegated=(request.id,)),
        Plan(tokens={request.id: 2}, promoted=(request.id,)),
        Plan(tokens={request.id: 1}),
        Plan(tokens={request.id: 1}),
    )
    world.step()
    world.step()
    assert world.scheduler.num_best_effort == 1
    assert world.scheduler.counters.best_effort_tokens == 2
    world.step()
    assert world.scheduler.num_promised == 1
    world.step()
    world.step()
    assert world.scheduler.counters.attained["chat", "all"] == 1


def test_a_degraded_request_that_gets_its_promise_back_in_time_was_only_deferred(
    world: Any,
) -> None:
    request = world.add(world.request(8, output=2, on_infeasible=OnInfeasible.DEGRADE))
    world.policy.instead = following(
        Plan(infeasible={request.id: Verdict(Reason.TPOT, "no", 0.0, 0.0)}),
        Plan(tokens={request.id: 8}, promoted=(request.id,)),
        Plan(tokens={request.id: 1}),
    )
    for _ in range(3):
        world.step()
    assert [d for _, d, _ in world.decisions] == [Decision.DEGRADED, Decision.DEFERRED]
    assert request.status is Status.FINISHED
    assert world.scheduler.counters.attained["chat", "all"] == 1


def test_a_promise_that_is_lost_is_not_given_back(world: Any) -> None:
    request = world.add(world.request(8, output=3, ttft_s=0.001))
    world.policy.instead = following(
        Plan(tokens={request.id: 8}, admitted=(request.id,)),
        Plan(tokens={request.id: 1}, relegated=(request.id,)),
        Plan(tokens={request.id: 1}, promoted=(request.id,)),
    )
    world.step()
    assert not request.row.kept
    world.step()
    world.step()
    assert request.status is Status.FINISHED
    assert world.scheduler.counters.num_promoted == 0
    assert world.scheduler.counters.attained["chat", "all"] == 0


def test_rows_tell_the_planner_when_the_next_token_is_due(world: Any) -> None:
    stages = (Stage("thinking", 0.2, until="</think>"), Stage("answer", 0.05))
    request = world.add(world.request(8, output=6, ttft_s=1.0, stages=stages))
    row = request.row
    assert (row.due_s, row.tpot_s, row.tightest_tpot_s, row.anchored) == (1.0, 0.2, 0.05, False)
    batch = world.plan()
    world.finish(batch)
    first_s = world.now_s
    assert row.due_s == pytest.approx(first_s + 0.2)
    assert (row.num_known, row.num_computed, row.num_output, row.max_output) == (9, 8, 1, 5)
    assert row.anchored
    assert row.decodes
    batch = world.plan()
    outcome = Outcome(token_id=3, stage=0, next_stage=1)
    world.scheduler.commit(batch, {request.id: outcome}, world.now_s, world.now_s + 0.01)
    assert row.due_s == pytest.approx(first_s + 0.2 + 0.05)
    assert (row.tpot_s, row.tightest_tpot_s) == (0.05, 0.05)


def test_a_late_token_breaks_the_promise_once_and_for_all(world: Any) -> None:
    request = world.add(world.request(8, output=3, ttft_s=1.0, tpot_s=0.02))
    world.finish(world.plan())
    world.finish(world.plan(), factor=3.0)
    world.finish(world.plan())
    assert request.status is Status.FINISHED
    counters = world.scheduler.counters
    assert counters.attained["chat", "ttft"] == 1
    assert counters.attained["chat", "tpot"] == 0
    assert counters.attained["chat", "all"] == 0
    assert counters.num_late_tokens == 1


def test_an_answer_that_is_not_streamed_is_judged_at_its_end(world: Any) -> None:
    world.add(world.request(8, output=3, ttft_s=1.0, tpot_s=0.02, streamed=False))
    world.finish(world.plan())
    world.finish(world.plan(), factor=3.0)
    world.finish(world.plan())
    assert world.scheduler.counters.attained["chat", "all"] == 1


def test_a_broken_promise_raises_when_told_to_assert_it(a_world: Any) -> None:
    world = a_world(assert_promises=True)
    world.add(world.request(8, output=3, ttft_s=0.005))
    with pytest.raises(PromiseBroken, match=r"token 1 was due at 0\.005"):
        world.finish(world.plan())


@pytest.mark.parametrize(("after_s", "eligible"), [(0.0, 0), (5.0, 1)])
def test_a_cancel_counts_as_missed_only_after_a_missed_due_time(
    world: Any, after_s: float, eligible: int
) -> None:
    request = world.add(world.request(8, output=20, ttft_s=1.0))
    world.step()
    assert world.scheduler.cancel(request.id, world.now_s + after_s)
    assert world.scheduler.counters.eligible["chat"] == eligible
    assert not world.scheduler.cancel(request.id, world.now_s)
    key = ("chat", "admitted", "cancelled", "ClientGone")
    assert world.scheduler.counters.ended[key] == 1


def test_cancelling_while_the_step_runs_frees_the_blocks_at_its_end(world: Any) -> None:
    request = world.add(world.request(8, output=20))
    batch = world.plan()
    world.scheduler.cancel(request.id, world.now_s)
    assert world.scheduler.blocks.num_free == 62
    world.scheduler.check_integrity()
    world.finish(batch)
    assert world.scheduler.blocks.num_free == 64
    assert world.plan() is None


def test_a_failed_step_fails_its_requests_and_no_others(world: Any) -> None:
    limits = world.scheduler.limits
    request = world.add(world.request(limits.max_batch_tokens))
    other = world.add(world.request(8))
    failed = world.scheduler.fail(world.plan(), world.now_s)
    assert failed == [request]
    world.run()
    assert other.status is Status.FINISHED
    assert world.scheduler.counters.ended["chat", "admitted", "failed", ""] == 1


def test_lengths_and_step_times_are_learnt(world: Any) -> None:
    world.add(world.request(8, output=5))
    world.run()
    assert world.scheduler.laws.of("chat").conditional(0, 100) == (5.0, 0.0)
    assert len(world.correction.seen) == 5
    predicted_s, actual_s = world.correction.seen[0]
    assert predicted_s == pytest.approx(actual_s)


def test_an_oracle_knows_how_much_is_left(world: Any) -> None:
    request = world.request(8, output=50)
    request.known_output = 7
    world.add(request)
    assert (request.row.expected_output, request.row.expected_sd) == (7.0, 0.0)
    world.step()
    assert request.row.expected_output == 6.0


def test_classes_come_and_go_at_run_time(world: Any, a_class: Any) -> None:
    world.scheduler.set_classes([a_class("chat"), a_class("batch")])
    assert world.scheduler.counters.eligible == {"chat": 0, "batch": 0}
    assert set(world.scheduler.frontier(0.0, world.scheduler.classes.values())) == {"chat", "batch"}
    world.scheduler.set_classes([a_class("chat")])
    assert set(world.scheduler.classes) == {"chat"}


def test_the_frontier_is_asked_for_only_when_something_changed(world: Any, a_class: Any) -> None:
    classes = [a_class("chat"), a_class("batch")]
    world.scheduler.frontier(0.0, classes)
    world.scheduler.frontier(0.1, classes)
    assert world.policy.num_frontiers == 2
    world.add(world.request())
    world.scheduler.frontier(0.1, classes)
    assert world.policy.num_frontiers == 4


def test_the_predicted_step_follows_the_correction(a_world: Any) -> None:
    world = a_world(model=StepModel(w=0.01, a0=0.0, c1=0.0, a1=0.001, b=0.0001, d=0.00001))
    world.correction.ratio = 2.0
    world.add(world.request(20, output=3))
    prefill = world.plan()
    assert prefill.stored_s == pytest.approx(0.02 + 0.00001 * 20 * 10)
    assert prefill.predicted_s == pytest.approx(2 * prefill.stored_s)
    world.finish(prefill)
    decode = world.plan()
    assert (decode.num_tokens, decode.num_decodes, decode.context) == (1, 1, 21)
    assert decode.stored_s == pytest.approx(0.01 + 0.0001 * 21)
