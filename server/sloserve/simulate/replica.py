"""A replica on the virtual clock: the real scheduler and policy, a step model for a runner."""

import time
from collections.abc import Callable

from sloserve.scheduler import Batch, Request, Scheduler
from sloserve.simulate.clock import EventLoop
from sloserve.simulate.drafter import SimDrafter
from sloserve.simulate.job import Job
from sloserve.simulate.truth import Truth
from sloserve.slo import Decision

REPLAN_S = 0.005
"""A loop with requests and nothing to run looks again after so long."""


class SimReplica:
    """
    What the engine loop does, in virtual time: take in, plan, run a step, commit.

    `plan_s` seconds pass before each step (planning, preparing, emitting: what is not the
    forward pass). With `overlap` the next step is planned while one runs, and again when somebody
    comes: in no virtual time. Planning between steps is also timed for real, in `planning_s`.
    Drafts are right as `drafter` says, and asking it takes its time before the step.
    """

    def __init__(
        self,
        name: str,
        clock: EventLoop,
        scheduler: Scheduler,
        truth: Truth,
        *,
        plan_s: float,
        overlap: bool = False,
        drafter: SimDrafter | None = None,
        on_decision: Callable[[Job, Decision, str], None],
        on_end: Callable[[Job], None],
    ) -> None:
        self.name = name
        self.scheduler = scheduler
        self.planning_s: list[float] = []
        self.busy_s = 0.0
        self._clock = clock
        self._truth = truth
        self._plan_s = plan_s
        self._overlap = overlap
        self._drafter = drafter
        self._on_decision = on_decision
        self._on_end = on_end
        self._jobs: dict[int, Job] = {}
        self._inbox: list[Request] = []
        self._running = False
        self._start_s = 0.0  # of the step that runs
        self._replan_at_s: float | None = None

    def submit(self, job: Job, request: Request) -> None:
        """A request arrives at this replica now."""
        if self._drafter is not None:
            self._drafter.begin(request)
        self._jobs[request.id] = job
        if self._running and self._overlap:
            self.scheduler.add(request, self._clock.now_s)
            self._foresee()
            return
        self._inbox.append(request)
        if not self._running:
            self._step()

    def _step(self) -> None:
        now_s = self._clock.now_s
        scheduler = self.scheduler
        while True:
            inbox, self._inbox = self._inbox, []
            for request in inbox:
                scheduler.add(request, now_s)
            started = time.perf_counter()
            batch = scheduler.schedule(now_s)
            self.planning_s.append(time.perf_counter() - started)
            self._running = batch is not None  # a declined job may come back from `_tell` at once
            self._tell()
            if batch is not None or not self._inbox:
                break
        if batch is None:
            self._look_again()
            return
        end_s = now_s + self._plan_s + self._truth.step_s(batch)
        if self._drafter is not None:
            end_s += self._drafter.spent_s()
        self.busy_s += end_s - now_s
        self._start_s = now_s
        self._clock.at(end_s, lambda: self._finish(batch))
        if self._overlap:
            self._foresee()

    def _foresee(self) -> None:
        self.scheduler.foresee(self._start_s, self._clock.now_s)
        self._tell()

    def _finish(self, batch: Batch) -> None:
        now_s = self._clock.now_s
        outcomes = {}
        ended: list[Job] = []
        for row in batch.rows:
            if row.sample:
                job = self._jobs[row.request.id]
                num_right = 0
                if self._drafter is not None and row.num_drafts:
                    num_right = self._drafter.num_right(
                        job.number, num_output=len(job.times_s), num_drafts=row.num_drafts
                    )
                outcome = job.outcomes(now_s, num_drafted=row.num_drafts, num_accepted=num_right)
                outcomes[row.request.id] = outcome
                if outcome.finished:
                    ended.append(job)
        self.scheduler.commit(batch, outcomes, self._start_s, now_s)
        for job in ended:
            del self._jobs[job.number]
            self._on_end(job)
        self._step()

    def _tell(self) -> None:
        for request, decision, verdict in self.scheduler.decisions():
            job = self._jobs[request.id]
            if decision is Decision.DECLINED:
                del self._jobs[request.id]
            self._on_decision(job, decision, verdict.reason.value if verdict else "")

    def _look_again(self) -> None:
        """Nothing runs: if somebody waits all the same, plan again a little later."""
        if not self.scheduler.requests:
            return
        at_s = self._clock.now_s + REPLAN_S
        self._replan_at_s = at_s

        def again() -> None:
            if self._replan_at_s == at_s and not self._running:
                self._replan_at_s = None
                self._step()

        self._clock.at(at_s, again)
