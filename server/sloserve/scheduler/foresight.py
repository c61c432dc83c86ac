"""
The step after the one that runs, planned before that one has ended.

Foreseen is the plain case: every sampled row gets one token of the stage it is in (more, from
drafts, are no harm), who reaches its longest output ends, and the step has ended at the latest
likely time. Nothing is touched: the plan is made on copies, by a fork of the policy, and whoever
runs it asks first whether it still holds. Fewer requests than foreseen are no harm: the step gets
shorter, and finds more blocks.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sloserve.planner import Plan, Policy, Row, Snapshot
from sloserve.scheduler.batch import Batch
from sloserve.scheduler.emission import foresee_token
from sloserve.scheduler.holdings import Holdings
from sloserve.scheduler.learning import Laws
from sloserve.scheduler.request import Request, Status

ROUNDING_S = 1e-9
"""A step that ends later than foreseen by less ends as foreseen: sums of floats differ."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """A plan and the state it counts on. `policy` remembers that plan as its last one."""

    plan: Plan
    policy: Policy
    now_s: float  # the running step has ended by then
    free_blocks: int
    num_requests: int  # alive then
    rows: dict[int, Row]  # of the running step: who goes on, as they will be after it
    ending: frozenset[int]  # of the running step: who reaches its longest output
    matched: dict[int, int]  # computed tokens that those without blocks find in the prefix cache

    def without(self, refused: Collection[int]) -> "Foresight":
        """The same after these were refused ahead of the rest."""
        if not refused:
            return self
        infeasible = {i: v for i, v in self.plan.infeasible.items() if i not in refused}
        plan = replace(self.plan, infeasible=infeasible)
        return replace(self, plan=plan, num_requests=self.num_requests - len(refused))


def foresee(
    snapshot: Snapshot,
    batch: Batch,
    policy: Policy,
    *,
    requests: Mapping[int, Request],
    laws: Laws,
    holdings: Holdings,
) -> Foresight:
    """
    Plan the step after `batch`, which runs. `snapshot` is the present state, but for its time:
    the latest likely end of the step.
    """
    now_s = snapshot.now_s
    rows: dict[int, Row] = {}
    leaving: list[list[int]] = []
    ending: set[int] = set()
    for part in batch.rows:
        request = part.request
        if request.status is not Status.RUNNING:  # cancelled while the step runs
            leaving.append(request.blocks)
            continue
        row = request.row.copied()
        row.num_computed = part.start + part.count
        if part.sample:
            foresee_token(request, row, now_s)
            if row.max_output <= 0:
                leaving.append(request.blocks)
                ending.add(row.id)
                continue
            laws.count_down(request, row)
        rows[row.id] = row

    def foreseen(present: Sequence[Row]) -> list[Row]:
        return [rows.get(row.id, row) for row in present if row.id not in ending]

    coming = replace(
        snapshot,
        free_blocks=snapshot.free_blocks + holdings.pool.num_freed_by(leaving),
        running=foreseen(snapshot.running),
        waiting=foreseen(snapshot.waiting),
        best_effort=foreseen(snapshot.best_effort),
    )
    planner = policy.fork()
    return Foresight(
        plan=planner.plan(coming),
        policy=planner,
        now_s=now_s,
        free_blocks=coming.free_blocks,
        num_requests=len(requests) - len(ending),
        rows=rows,
        ending=frozenset(ending),
        matched={i: r.row.num_computed for i, r in holdings.unstarted.items()},
    )


def still_good(
    foresight: Foresight,
    requests: Mapping[int, Request],
    *,
    now_s: float,
    free_blocks: int,
    block_size: int,
) -> Plan | None:
    """
    The foreseen plan, less those who are gone, if what it counts on came true; else None.
    Nobody may have come since.

    Not taken either: a plan that takes a promise or blocks away, and one that refuses somebody
    when another has left. Those are decided on what is, not on what was expected.
    """
    plan = foresight.plan
    if now_s > foresight.now_s + ROUNDING_S or free_blocks < foresight.free_blocks:
        return None
    if plan.relegated or plan.preempted:
        return None
    if not foresight.ending.isdisjoint(requests):
        return None
    for request_id, row in foresight.rows.items():  # per row and step: kept lean
        request = requests.get(request_id)
        if request is not None and not _came_true(row, request.row, block_size=block_size):
            return None
    for request_id, num_matched in foresight.matched.items():
        request = requests.get(request_id)
        if request is not None and request.row.num_computed != num_matched:
            return None
    if len(requests) == foresight.num_requests:
        return plan
    if plan.infeasible:
        return None
    return replace(
        plan,
        tokens={i: count for i, count in plan.tokens.items() if i in requests},
        admitted=tuple(i for i in plan.admitted if i in requests),
        promoted=tuple(i for i in plan.promoted if i in requests),
    )


def _came_true(foreseen: Row, row: Row, *, block_size: int) -> bool:
    """
    Whether a row is as foreseen, or ahead of it: accepted drafts gave it more tokens. Then it must
    hold the block of its next one already.
    """
    ahead = row.num_known - foreseen.num_known
    if ahead and (ahead < 0 or row.num_known > row.num_blocks * block_size):
        return False
    return (
        row.num_computed == foreseen.num_computed + ahead
        and row.tpot_s == foreseen.tpot_s
        and row.tightest_tpot_s == foreseen.tightest_tpot_s
        and row.kept == foreseen.kept
    )
