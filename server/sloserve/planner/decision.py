"""One decision of the `sloserve` policy: a snapshot, played forward as often as needed."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from sloserve.errors import Reason
from sloserve.planner.besteffort import trickle_s
from sloserve.planner.feasibility import First, Job, Machine, Play, play
from sloserve.planner.memory import Fit, fit, peak_tokens
from sloserve.planner.settings import Settings
from sloserve.planner.types import Row, Snapshot, Verdict
from sloserve.planner.verdicts import no_blocks, no_slot, refused
from sloserve.planner.view import Ask, View, view, work_s

_NOTHING = First(inf, (), 0.0, 0.0)
KV_FULL = Play(False, _NOTHING, Reason.KV)
SLOTS_FULL = Play(False, _NOTHING, Reason.TTFT)
"""As many run as may: whoever comes waits for a first token until one of them ends."""


class _Tried(NamedTuple):
    """A play-forward and what it was of."""

    seen: View
    machine: Machine
    asks: tuple[Ask, ...]
    play: Play


class Decision:
    """The running requests of a snapshot, and questions about who may join them."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        self.snapshot = snapshot
        self.settings = settings
        model = snapshot.model
        limit_s = settings.step_limit_factor * max(model.w, model.c1)
        self.reserve_s = trickle_s(
            snapshot.best_effort, settings, now_s=snapshot.now_s, limit_s=limit_s
        )
        self.machine = Machine(
            model,
            limit_s,
            snapshot.limits.max_batch_tokens,
            self.reserve_s,
            settings.min_chunk_tokens,
            settings.safety,
        )
        self._guard = 1.0 + settings.guard_factor * snapshot.excess_share
        self._slower = model.scaled(self._guard)
        self.num_runs = 0
        self.relegated: list[Row] = []
        self.due_s: dict[int, float]
        self.seen: View
        self.base_s: float
        self._look(snapshot.margin_s)
        self.failures: dict[int, Play] = {}
        self._tried: _Tried | None = None
        self.accepted: tuple[tuple[int, ...], Play] | None = None

    def _look(self, margin_s: float) -> None:
        gone = frozenset(row.id for row in self.relegated)
        self.base_s = self.snapshot.now_s + margin_s
        self.seen = view(self.snapshot, margin_s=margin_s, without=gone)
        self.accepted = None
        self.due_s = {job.id: job.due_s + self.base_s for job in self.seen.jobs}

    def run(self, jobs: Sequence[Job], *, lockstep: bool, max_steps: int | None = None) -> Play:
        """Play forward; `jobs` sorted, the running prefills among them."""
        self.num_runs += 1
        if max_steps is None:
            return play(self.seen.field, jobs, self.machine, lockstep=lockstep)
        return play(self.seen.field, jobs, self.machine, lockstep=lockstep, max_steps=max_steps)

    def lockstep(self, asks: Sequence[Ask]) -> bool:
        """Whether memory is too tight to leave decodes out of steps."""
        return not self._fit(asks).slack

    def feasible(self, asks: Sequence[Ask]) -> bool:
        """Whether `asks` may all join: slots, blocks, and every promise in time."""
        result = self._try(tuple(asks))
        if result.ok:
            self.accepted = (tuple(ask.row.id for ask in asks), result)
        return result.ok

    def accept(self, asks: Sequence[Ask]) -> bool:
        """As `feasible`; a refusal is laid to the last of them, with its cause."""
        if self.feasible(asks):
            return True
        if asks and self._tried:
            self.failures[asks[-1].row.id] = self._tried.play
        return False

    def too_much_by(self, asks: Sequence[Ask]) -> float | None:
        """None when `asks` may all join; else the due time by which too much would be asked."""
        if self.accept(asks):
            return None
        failed = self.failures[asks[-1].row.id]
        if failed.reason is not Reason.TTFT or failed.late_id is None:
            return inf
        if failed.late_id in self.due_s:
            return self.due_s[failed.late_id]
        return next((ask.due_s for ask in asks if ask.row.id == failed.late_id), inf)

    def first_step(self, asks: Sequence[Ask]) -> First:
        """
        The coming step with `asks` joined: of the accepted play-forward, else formed now.

        When nothing meets the deadlines any more, margins are given up, then promises
        (`settle`), and at last only order by deadline is left.
        """
        if self.accepted and self.accepted[0] == tuple(ask.row.id for ask in asks):
            return self.accepted[1].first
        for attempt in range(2):
            jobs = self._jobs(asks)
            result = self.run(jobs, lockstep=self.lockstep(asks), max_steps=1)
            if result.ok:
                return result.first
            if attempt == 0:
                self.settle()
        late = [job._replace(due_s=job.due_s + 1e6) for job in self._jobs(asks)]
        return self.run(late, lockstep=True, max_steps=1).first

    def settle(self) -> bool:
        """
        Make sure that the running requests are feasible by themselves.

        A model error, or best effort that came after the promises, may have made them infeasible:
        give up what is kept free for best effort, then the margin, the safety of single steps and
        a little more; if that does not do, relegate the one with the least value per remaining
        demand. True when promises were given up.
        """
        margin_s, safety = self.snapshot.margin_s, self.settings.safety
        tries = (
            (margin_s, safety),
            (margin_s / 2, safety),
            (0.0, safety),
            (0.0, 1.0),
            (-self.settings.relegate_late_s, 1.0),
        )
        before = len(self.relegated)
        num_victims = 1
        while True:
            result: Play | None = None
            for tried_s, tried_safety in tries:
                if self.snapshot.now_s + tried_s != self.base_s:
                    self._look(tried_s)
                if self.machine.safety != tried_safety:
                    self.machine = self.machine._replace(safety=tried_safety)
                result = self.run(self.seen.jobs, lockstep=self.lockstep(()))
                if not result.ok and self.reserve_s > 0.0:
                    self._give_up_reserve()
                    result = self.run(self.seen.jobs, lockstep=self.lockstep(()))
                if result.ok:
                    return len(self.relegated) > before
            assert result is not None
            for _ in range(num_victims):
                victim = self._least_valuable(result)
                if victim is None:
                    return len(self.relegated) > before
                self.relegated.append(victim)
                self._look(margin_s)
            num_victims *= 1 if self.seen.jobs else 2  # a crowd of decodes: not one by one

    def _give_up_reserve(self) -> None:
        self.reserve_s = 0.0
        self.machine = self.machine._replace(reserve_s=0.0)

    def verdict(self, ask: Ask, cause: Play, asks: Sequence[Ask]) -> Verdict:
        """The verdict on `ask`, refused because of `cause`, with `asks` accepted instead."""
        limits, row = self.snapshot.limits, ask.row
        last = ask.job._replace(due_s=1e6)
        jobs = [*self._jobs([a for a in asks if a is not ask]), last]
        result = self.run(jobs, lockstep=cause.reason is Reason.KV)
        earliest_s = dict(result.finished).get(ask.id, result.first.predicted_s)
        others = [a.holder for a in asks if a is not ask]
        if cause is SLOTS_FULL:
            num_over = len(self.seen.rows) + len(others) + 1 - limits.max_running
            ends = sorted(h.left for h in (*self.seen.holders(), *others))
            steps = ends[min(num_over, len(ends)) - 1] if num_over > 0 and ends else 0.0
            return no_slot(
                max_running=limits.max_running,
                ttft_left_s=row.due_s - self.snapshot.now_s,
                earliest_s=earliest_s,
                until_free_s=steps * self._pace_s(len(ends)),
            )
        if cause.reason is Reason.KV:
            holders = [*self.seen.holders(), *others, ask.holder]
            size = limits.block_size
            peak = peak_tokens(holders, spare=size - 1, z=self.settings.z)
            over = peak - limits.num_blocks * size
            pace_s = self._pace_s(len(holders))
            until_s = 0.0
            for tokens, left, _ in sorted(self.seen.holders(), key=lambda h: h.left):
                if over <= 0:
                    break
                over -= tokens + left
                until_s = left * pace_s
            return no_blocks(
                needed=int(peak) // size,
                num_blocks=limits.num_blocks,
                earliest_s=earliest_s,
                until_free_s=until_s,
            )
        return refused(
            cause,
            ttft_left_s=row.due_s - self.snapshot.now_s,
            ttft_s=row.due_s - row.arrival_s,
            tpot_s=row.tpot_s,
            earliest_s=earliest_s,
        )

    def _pace_s(self, num_rows: int) -> float:
        """Seconds per token when so many run: a step of decodes alone."""
        return self.snapshot.model.step_s(num_rows, context=float(self.seen.field.total))

    def _try(self, asks: tuple[Ask, ...]) -> Play:
        """One play-forward; the last one is remembered, for as long as nothing has changed."""
        last = self._tried
        if last and (last.seen, last.machine, last.asks) == (self.seen, self.machine, asks):
            return last.play
        result = self._joined(asks)
        self._tried = _Tried(self.seen, self.machine, asks, result)
        return result

    def _joined(self, asks: Sequence[Ask]) -> Play:
        if self.seen.totals.num_holders + len(asks) > self.snapshot.limits.max_running:
            return SLOTS_FULL
        room = self._fit(asks)
        if not room.fits and asks:
            return KV_FULL
        jobs = self._jobs(asks)
        if not asks:
            return self.run(jobs, lockstep=not room.slack)
        self.num_runs += 1
        result = play(
            self.seen.field,
            jobs,
            self.machine._replace(model=self._slower),
            lockstep=not room.slack,
        )
        if not result.ok:
            return result
        first = result.first
        predicted_s = first.predicted_s / self._guard
        return result._replace(first=first._replace(predicted_s=predicted_s))

    def _fit(self, asks: Sequence[Ask]) -> Fit:
        limits = self.snapshot.limits
        joining = [ask.holder for ask in asks]
        return fit(
            self.seen.totals,
            joining,
            lambda: [*self.seen.holders(), *joining],
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            z=self.settings.z,
        )

    def _jobs(self, asks: Sequence[Ask]) -> list[Job]:
        if not asks:
            return self.seen.jobs
        return sorted([*self.seen.jobs, *(ask.job for ask in asks)])

    def _least_valuable(self, failed: Play) -> Row | None:
        rows = {row.id: row for row in self.snapshot.running}
        model = self.snapshot.model
        if failed.reason is Reason.TTFT and self.seen.jobs:
            late = self.seen.jobs[-1] if failed.late_id is None else None
            for job in self.seen.jobs:
                if job.id == failed.late_id:
                    late = job
            ahead = [job for job in self.seen.jobs if late is None or job.due_s <= late.due_s]
            worst = min(
                ahead or self.seen.jobs,
                key=lambda job: rows[job.id].weight / work_s(model, job.rem, job.prior),
            )
            return rows[worst.id]
        if self.seen.decodes:
            return min(
                (row for _, row in self.seen.decodes),
                key=lambda row: row.weight / max(1.0, row.expected_output),
            )
        return rows[self.seen.jobs[0].id] if self.seen.jobs else None
