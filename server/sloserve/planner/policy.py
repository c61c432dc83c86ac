"""
The `sloserve` policy: keep every promise made, make as many as can be kept.

Between steps: who lost a promise leaves (relegated), newcomers are selected by playing the demand
forward, the first step of the accepted play-forward is the batch, best effort gets what is left.
A selected request is told so (`admitted`) when the last chunk of its prefill runs (the first where
prefills may not begin without a promise: `Snapshot.tentative`), or at once when it may not wait:
until then a newcomer of more value per demand can still take its place.
"""

from collections.abc import Sequence
from copy import copy

from sloserve.planner.batching import Batch, compose
from sloserve.planner.besteffort import fill
from sloserve.planner.decision import SLOTS_FULL, Decision
from sloserve.planner.feasibility import First, Play
from sloserve.planner.frontier import interval, ttft_s
from sloserve.planner.memory import blocks_for
from sloserve.planner.selection import select
from sloserve.planner.settings import Settings
from sloserve.planner.types import Plan, Probe, Row, Snapshot, Tier, Verdict
from sloserve.planner.verdicts import hopeless
from sloserve.planner.view import Ask, ask_of, solo_s
from sloserve.wire import Frontier

PROMOTE_STEPS = 16
"""Best effort is looked through for promises that can be kept after all every so many steps."""


class SloservePolicy:
    """Remembers its own plans only: whom it selected, whom it refused, what it expected."""

    name = "sloserve"

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.num_runs = 0
        """Play-forwards so far, for the cost figures."""
        self._selected: set[int] = set()
        self._refused: dict[int, tuple[Play, float]] = {}  # why; the last moment it could start
        self._num_expected = 0  # promised requests that should run now
        self._unverified = 0
        self._steps = 0

    def plan(self, snapshot: Snapshot) -> Plan:
        """The plan for the coming step."""
        decision = Decision(snapshot, self.settings)
        self._steps += 1
        self._unverified += 1
        if decision.seen.lost or len(snapshot.running) < self._num_expected:
            self._refused.clear()  # somebody left: room for others
        lost = list(decision.seen.lost)
        if self._unverified >= self.settings.verify_steps and decision.seen.jobs:
            self._verify(decision)
        infeasible: dict[int, Verdict] = {}
        chosen = self._choose(decision, infeasible)
        promoted = self._promote(decision, chosen)
        first = decision.first_step([*chosen, *promoted])
        relegated = [*lost, *decision.relegated]
        plan = self._finish(decision, first, [*chosen, *promoted], relegated)
        self.num_runs += decision.num_runs
        done = {
            ask.id
            for ask in chosen
            if plan.tokens.get(ask.id, 0) >= (ask.job.rem if snapshot.tentative else 1)
        }
        admitted = tuple(ask.id for ask in chosen if ask.id in done or not ask.row.may_wait)
        self._selected = {ask.id for ask in chosen}.difference(admitted)
        self._num_expected = len(snapshot.running) + len(admitted) + len(promoted) - len(relegated)
        return Plan(
            tokens=plan.tokens,
            predicted_s=first.predicted_s,
            admitted=admitted,
            infeasible=infeasible,
            relegated=tuple(row.id for row in relegated),
            promoted=tuple(ask.id for ask in promoted),
            preempted=tuple(plan.preempted),
            room_s=first.cap_s,
        )

    def frontier(self, snapshot: Snapshot, probe: Probe) -> Frontier:
        """The prompt lengths of a class that would be admitted at `snapshot.now_s`."""
        decision = Decision(snapshot, self.settings)
        chosen = [
            ask_of(row, decision.base_s, snapshot.model, firm=True)
            for row in snapshot.waiting
            if row.id in self._selected
        ]

        def admits(num_tokens: int) -> bool:
            row = _probe_row(probe, num_tokens, now_s=snapshot.now_s)
            ask = ask_of(row, decision.base_s, snapshot.model, firm=True)
            return decision.accept([*chosen, ask])

        return interval(admits, probe.max_prompt)

    def fork(self) -> "SloservePolicy":
        """One that remembers the same and goes its own way."""
        twin = copy(self)
        twin._selected = set(self._selected)
        twin._refused = dict(self._refused)
        return twin

    # --- who waits ----------------------------------------------------------------------------

    def _choose(self, decision: Decision, infeasible: dict[int, Verdict]) -> list[Ask]:
        """The selected among the waiting; who can't be served any more goes to `infeasible`."""
        snapshot = decision.snapshot
        if not snapshot.waiting:
            self._refused.clear()
            return []
        model, now = snapshot.model, snapshot.now_s
        old: list[Ask] = []
        new: list[Ask] = []
        given_up: list[tuple[Row, Play]] = []
        for row in snapshot.waiting:
            known = self._refused.get(row.id)
            if known is not None:
                if now > known[1]:
                    given_up.append((row, known[0]))
                continue
            if row.id in self._selected:
                old.append(ask_of(row, decision.base_s, model, firm=False))
                continue
            alone_s = solo_s(model, row.num_left, row.num_computed)
            if decision.base_s + alone_s > row.due_s:
                infeasible[row.id] = hopeless(
                    ttft_left_s=row.due_s - now, solo_s=alone_s, ttft_s=row.due_s - row.arrival_s
                )
                continue
            new.append(ask_of(row, decision.base_s, model, firm=False))
        chosen = old
        new.sort(key=lambda ask: (ask.due_s, ask.id))
        if new and decision.feasible([*old, *new]):  # all of them: nothing to select
            self._unverified = 0
            chosen = [*old, *new]
        elif new:
            self._verify(decision)
            if old:
                chosen = self._thin(decision, old)
            chosen, refused = select(chosen, new, decision.too_much_by)
            for ask in refused:
                self._refuse(decision, ask)
                if not ask.row.may_wait:
                    given_up.append((ask.row, self._refused.pop(ask.id)[0]))
        for row, cause in given_up:
            ask = ask_of(row, decision.base_s, model, firm=False)
            infeasible[row.id] = decision.verdict(ask, cause, chosen)
            self._refused.pop(row.id, None)
        if len(self._refused) > 2 * len(snapshot.waiting):
            alive = {row.id for row in snapshot.waiting}
            self._refused = {i: v for i, v in self._refused.items() if i in alive}
        return chosen

    def _thin(self, decision: Decision, old: list[Ask]) -> list[Ask]:
        """Those selected before, less whom a model error has made impossible."""
        chosen = old
        while chosen and not decision.accept(chosen):
            worst = min(chosen, key=lambda ask: ask.density)
            chosen = [ask for ask in chosen if ask is not worst]
            self._refuse(decision, worst)
        return chosen

    def _refuse(self, decision: Decision, ask: Ask) -> None:
        cause = decision.failures.get(ask.id) or next(
            reversed(decision.failures.values()), SLOTS_FULL
        )
        alone_s = solo_s(decision.snapshot.model, ask.job.rem, ask.job.prior)
        margin_s = decision.base_s - decision.snapshot.now_s
        self._refused[ask.id] = (cause, ask.row.due_s - margin_s - alone_s)

    def _verify(self, decision: Decision) -> None:
        self._unverified = 0
        if decision.settle():
            self._refused.clear()

    def _promote(self, decision: Decision, chosen: Sequence[Ask]) -> list[Ask]:
        """Best-effort requests that have no token yet and whose promise fits after all."""
        snapshot = decision.snapshot
        if not snapshot.best_effort or self._steps % PROMOTE_STEPS:
            return []
        promoted: list[Ask] = []
        for row in snapshot.best_effort:
            alone_s = solo_s(snapshot.model, row.num_left, row.num_computed)
            if row.num_output or not row.kept or decision.base_s + alone_s > row.due_s:
                continue
            ask = ask_of(row, decision.base_s, snapshot.model, firm=True)
            if not decision.accept([*chosen, *promoted, ask]):
                break
            promoted.append(ask)
        return promoted

    # --- the step -----------------------------------------------------------------------------

    def _finish(
        self, decision: Decision, first: First, asks: Sequence[Ask], relegated: Sequence[Row]
    ) -> Batch:
        """The first step as tokens, with best effort in what is left of it."""
        snapshot = decision.snapshot
        limits = snapshot.limits
        rows: dict[int, Row] = {}
        if decision.seen.jobs or asks:
            rows = {row.id: row for row in snapshot.running}
            for row in relegated:
                rows.pop(row.id, None)
            rows.update((ask.id, ask.row) for ask in asks)
        elif snapshot.free_blocks < len(decision.seen.decodes):
            rows = {row.id: row for _, row in decision.seen.decodes}
        others = snapshot.best_effort
        joined = {ask.id for ask in asks}
        if others and asks:
            others = [row for row in others if row.id not in joined]
        idle = [row for row in snapshot.waiting if row.num_blocks and row.id not in joined]
        batch = compose(
            first,
            decision.seen,
            rows,
            [*idle, *others, *relegated],
            limits,
            snapshot.model,
            free_blocks=snapshot.free_blocks,
        )
        if others and not batch.preempted:
            self._fill_up(decision, first, asks, batch, idle, others)
        return batch

    def _fill_up(
        self,
        decision: Decision,
        first: First,
        asks: Sequence[Ask],
        batch: Batch,
        idle: Sequence[Row],
        others: Sequence[Row],
    ) -> None:
        """Best effort into what is left of the step; alone and stuck, the last one started goes."""
        snapshot, limits = decision.snapshot, decision.snapshot.limits
        alone = not batch.tokens
        reserve_s = decision.reserve_s
        used_s = first.predicted_s - (reserve_s if first.chunks else 0.0)
        budget_s = reserve_s if first.busy else max(reserve_s, first.cap_s - used_s)
        headroom = 0
        if alone:
            budget_s = decision.machine.limit_s - max(snapshot.model.w, snapshot.model.c1)
        else:
            due = (*decision.seen.jobs, *(ask.job for ask in asks))
            headroom = int(self.settings.headroom_share * limits.num_blocks)
            headroom += sum(blocks_for(job.rem, limits.block_size) for job in due)
        stuck = sorted((row for row in others if row.num_blocks), key=lambda row: row.num_computed)
        num_held = len(stuck) + sum(row.num_blocks > 0 for row in idle)
        while True:
            taken = fill(
                others,
                snapshot.model,
                budget_s=budget_s,
                num_tokens=sum(batch.tokens.values()),
                max_tokens=limits.max_batch_tokens,
                free_blocks=batch.free_blocks,
                headroom_blocks=headroom,
                free_slots=limits.max_running - len(snapshot.running) - len(asks) - num_held,
                block_size=limits.block_size,
            )
            batch.tokens.update(taken)
            if taken or not alone or not stuck:
                return
            victim = stuck.pop(0)
            others = [row for row in others if row is not victim]
            batch.preempted.append(victim.id)
            batch.free_blocks += victim.num_blocks
            num_held -= 1


def _probe_row(probe: Probe, num_tokens: int, *, now_s: float) -> Row:
    return Row(
        id=-1,
        tier=Tier.PROMISED,
        arrival_s=now_s,
        num_known=num_tokens,
        num_computed=0,
        num_output=0,
        due_s=now_s + ttft_s(probe, num_tokens),
        tpot_s=probe.tpot_s,
        tightest_tpot_s=probe.tightest_tpot_s,
        anchored=False,
        expected_output=probe.expected_output,
        expected_sd=probe.expected_sd,
        max_output=max(1, int(probe.expected_output + 4 * probe.expected_sd)),
        weight=probe.weight,
        num_blocks=0,
        running=False,
        slo_class=probe.slo_class,
    )
