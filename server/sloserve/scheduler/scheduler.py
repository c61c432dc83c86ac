"""The scheduler: asks a policy for a plan, applies it, and keeps the books."""

from collections.abc import Callable, Iterable, Mapping

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.planner import Limits, Plan, Policy, Probe, Snapshot, Tier, Verdict
from sloserve.scheduler.batch import Batch, BatchRow, Outcome, make_batch
from sloserve.scheduler.blocks import BlockPool
from sloserve.scheduler.counters import Counters, Ending
from sloserve.scheduler.deciding import Deciding, Told
from sloserve.scheduler.emission import emit
from sloserve.scheduler.foresight import Foresight, foresee, still_good
from sloserve.scheduler.holdings import Holdings
from sloserve.scheduler.learning import Correction, Law, Laws
from sloserve.scheduler.placing import Placing
from sloserve.scheduler.queues import Queues
from sloserve.scheduler.report import probe_of
from sloserve.scheduler.request import Request, Status
from sloserve.scheduler.speculating import Speculating
from sloserve.slo import Decision, SloClass
from sloserve.wire import Frontier

EMPTY = Frontier(1, 0)
LATE_TOLERANCE_S = 1e-6
"""Rounding of sums of floats; only `assert_promises` forgives it, the score never does."""


class PromiseBroken(AssertionError):
    """A promised request's token was late although the scheduler was told to assert it."""


class Scheduler:
    """
    Owns every request from `add` to its end.

    One caller, in turns: any number of `add`, `cancel`, `set_classes`; then `schedule`; when it
    gave a batch, `commit` or `fail` it. All that comes in may also come while a batch runs (the
    blocks of who is cancelled are then freed by the commit), and `foresee` may be asked to plan
    the next one meanwhile. No clock: times are passed in, all on one monotonic clock.

    `way_out_s` is what lies between emission here and arrival at the client; it is subtracted
    from every deadline. `assert_promises` raises PromiseBroken when a promised request's token
    is late: with an exact model and known lengths that never happens.
    """

    def __init__(
        self,
        policy: Policy,
        model: StepModel,
        correction: Correction,
        limits: Limits,
        *,
        new_law: Callable[[], Law],
        classes: Iterable[SloClass] = (),
        max_model_len: int | None = None,
        max_waiting: int = 1024,
        prefix_caching: bool = True,
        way_out_s: float = 0.0,
        assert_promises: bool = False,
        speculating: Speculating | None = None,
    ) -> None:
        self.policy = policy
        self.model = model
        """The stored profile's model, uncorrected."""
        self.correction = correction
        self.limits = limits
        self.laws = Laws(new_law)
        self.blocks = BlockPool(limits.num_blocks, block_size=limits.block_size)
        self.holdings = Holdings(self.blocks)
        self.counters = Counters()
        self.requests: dict[int, Request] = {}
        """Every request that has not ended."""
        pool_tokens = limits.num_blocks * limits.block_size
        self.max_model_len = min(max_model_len or pool_tokens, pool_tokens)
        """Prompt and output tokens of one request at most."""
        self.max_waiting = max_waiting
        self.way_out_s = way_out_s
        self.version = 0
        """Changes with every change of state; what was computed from equal versions is equal."""
        self.classes: dict[str, SloClass] = {}
        self._prefix_caching = prefix_caching
        self._assert_promises = assert_promises
        self.speculating = speculating
        """Gives decodes their drafts; None: no speculation."""
        self.queues = Queues()
        self._frontiers: dict[str, tuple[int, Frontier]] = {}  # by class: version, answer
        self._placing = Placing(self.requests, self.queues, self.holdings, self.counters)
        self._deciding = Deciding(self.requests, self.queues, self.holdings, self.counters)
        self._num_plans = 0
        self._in_flight: Batch | None = None
        self._foresight: Foresight | None = None
        self._corrected: tuple[float, StepModel] = (1.0, model)
        self.set_classes(classes)

    # --- what comes in ------------------------------------------------------------------------

    def set_classes(self, classes: Iterable[SloClass]) -> None:
        """From now on these classes are reported on. Promises already made stay as they are."""
        self.classes = {slo_class.name: slo_class for slo_class in classes}
        for name in self.classes:
            self.counters.start(name)
        self.version += 1

    def add(self, request: Request, now_s: float) -> None:
        """Take in a new request; its decision comes with a later `schedule`, or at once here."""
        self.version += 1
        request.added_at_plan = self._num_plans
        self.counters.start(request.promise.slo_class)
        needed = self.blocks.blocks_for(request.num_prompt + request.max_output)
        if needed > self.limits.num_blocks:
            message = f"needs {needed} KV blocks at its longest, this replica has"
            message += f" {self.limits.num_blocks}"
            self._deciding.decline(request, Verdict(Reason.KV, message, 0.0, 0.0), now_s)
            return
        if self.num_waiting >= self.max_waiting:
            backlog_s = self.backlog_s()
            message = f"{self.num_waiting} requests are waiting, at most {self.max_waiting} may"
            verdict = Verdict(Reason.QUEUE_FULL, message, backlog_s, max(1.0, backlog_s))
            self._deciding.decline(request, verdict, now_s)
            return
        request.reuse_prefix = request.reuse_prefix and self._prefix_caching
        self.laws.arrived(request)
        self.laws.expect(request, request.row)
        self.requests[request.id] = request
        self._foresight = None
        self.holdings.add(request)
        if request.tier is Tier.PROMISED:
            self.queues.wait(request)
        else:
            self._deciding.decide(request, Decision.DEGRADED)
            self.queues.serve_best_effort(request)

    def cancel(self, request_id: int, now_s: float, *, reason: Reason = Reason.CLIENT_GONE) -> bool:
        """End a request; False if there is none of that id (it ended before)."""
        return self._drop(request_id, now_s, status=Status.CANCELLED, reason=reason)

    def abort(self, request_id: int, now_s: float, *, reason: Reason = Reason.NONE) -> bool:
        """End a request that the machinery failed; it counts as missed."""
        return self._drop(request_id, now_s, status=Status.FAILED, reason=reason)

    # --- one step -----------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """
        Plan, decide, and give the next step to run; None when there is nothing to run now.

        Decisions made on the way are in `decisions()`.
        """
        assert self._in_flight is None, "the last batch was neither committed nor failed"
        again = True
        while self.requests:
            self.holdings.match_prefixes()
            plan = self._plan(now_s)
            num_best_effort = self.num_best_effort
            self._deciding.apply(plan, now_s, number=self._num_plans, placing=self._placing)
            rows, num_starved = self._placing.fill(plan.tokens, plan=self._num_plans)
            if rows:
                return self._begin(rows, now_s, room_s=plan.room_s)
            if again and self.num_best_effort > num_best_effort:
                again = False  # somebody became best effort just now, and may run at once
            elif not ((num_starved or not plan.tokens) and self._placing.break_deadlock()):
                break
        return None

    def foresee(self, start_s: float, now_s: float, *, gap_s: float = 0.0) -> None:
        """
        While a batch runs: plan the one after it, unless that is done; `start_s` as for `commit`,
        `gap_s` lies between the end of a step and the `schedule` after it.

        Takes for granted that the step ends as late as it likely will: 19 of 20 end before. Who
        may not wait and can't be promised hears it at once (`decisions`), so that another replica
        is asked the sooner; everything else is told when the plan is taken.
        """
        assert self._in_flight is not None, "no batch runs"
        if self._foresight is not None:
            return
        self.holdings.match_prefixes()
        end_s = start_s + self._in_flight.predicted_s + self.correction.margin_s + gap_s
        foresight = foresee(
            self.snapshot(max(end_s, now_s)),
            self._in_flight,
            self.policy,
            requests=self.requests,
            laws=self.laws,
            holdings=self.holdings,
        )
        told = []
        for request_id, verdict in foresight.plan.infeasible.items():
            request = self.requests.get(request_id)
            if request is None or request.last_hop or request.in_flight or request.decision:
                continue
            self._deciding.refuse(request, verdict, now_s)
            self.version += 1
            told.append(request_id)
        self._foresight = foresight.without(told)

    def commit(
        self, batch: Batch, outcomes: Mapping[int, Outcome], start_s: float, end_s: float
    ) -> None:
        """
        Account a step that ran from `start_s` to `end_s`; `outcomes` by request id holds at
        least the rows with `sample`.
        """
        assert batch is self._in_flight, "this batch does not run"
        self._in_flight = None
        self.version += 1
        num_output = 0
        running, computed = Status.RUNNING, self.holdings.computed
        for row in batch.rows:
            request = row.request
            request.in_flight = False
            if request.status is not running:  # cancelled while the step ran
                self.holdings.release(request)
                continue
            if not row.sample:
                computed(request, row.start + row.count)
                continue
            outcome = outcomes[request.id]
            if self.speculating is not None:
                self._learn(row, outcome)
            for token in outcome.earlier:
                self._append(request, token, end_s)
            computed(request, row.start + row.count + len(outcome.earlier))
            self._append(request, outcome, end_s)
            num_output += 1 + len(outcome.earlier)
        counters = self.counters
        counters.num_steps += 1
        counters.output_tokens += num_output
        counters.decode_tokens += batch.num_decodes
        counters.prefill_tokens += batch.num_prefill_tokens
        counters.best_effort_tokens += batch.num_best_effort_tokens
        if self.speculating is not None:
            self.speculating.took(batch, end_s - start_s)
        self.correction.observe(batch.stored_s, end_s - start_s)

    def fail(self, batch: Batch, now_s: float) -> list[Request]:
        """The step broke: its requests end as failed, and are given back."""
        assert batch is self._in_flight, "this batch does not run"
        self._in_flight = self._foresight = None
        failed = []
        for row in batch.rows:
            row.request.in_flight = False
            if row.request.status is Status.RUNNING:
                self.abort(row.request.id, now_s)
                failed.append(row.request)
            else:
                self.holdings.release(row.request)
        return failed

    def decisions(self) -> list[Told]:
        """The decisions since the last call, in order."""
        return self._deciding.drained()

    # --- what it looks like -------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests that hold no blocks: undecided, not started, or preempted."""
        return len(self.holdings.unstarted)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self.requests) - len(self.holdings.unstarted)

    @property
    def num_promised(self) -> int:
        """Requests whose promise is being kept."""
        return len(self.queues.promised)

    @property
    def num_best_effort(self) -> int:
        """Requests without a promise, running or waiting."""
        return len(self.queues.best_effort)

    def corrected(self) -> StepModel:
        """The step model as of late."""
        ratio = self.correction.ratio
        if ratio != self._corrected[0]:
            self._corrected = (ratio, self.model.scaled(ratio))
        return self._corrected[1]

    def snapshot(self, now_s: float) -> Snapshot:
        """What the policy sees. The rows are live: read them before the next call here."""
        return Snapshot(
            now_s=now_s,
            model=self.corrected(),
            margin_s=self.correction.margin_s + self.way_out_s,
            limits=self.limits,
            free_blocks=self.blocks.num_free,
            running=self.queues.promised_rows,
            waiting=self.queues.waiting.rows,
            best_effort=self.queues.best_effort.rows,
            excess_share=self.correction.excess_share,
        )

    def frontier(self, now_s: float, classes: Iterable[SloClass]) -> dict[str, Frontier]:
        """
        Per class the prompt lengths that would be admitted now. Costs a few feasibility runs a
        class, none while nothing changed.
        """
        found = {}
        for slo_class in classes:
            version, frontier = self._frontiers.get(slo_class.name, (-1, EMPTY))
            if version != self.version:
                frontier = self.policy.frontier(self.snapshot(now_s), self.probe(slo_class))
                self._frontiers[slo_class.name] = (self.version, frontier)
            found[slo_class.name] = frontier
        return found

    def probe(self, slo_class: SloClass) -> Probe:
        """A class as `Policy.frontier` asks about it, with the lengths learnt so far."""
        law = self.laws.of(slo_class.name)
        return probe_of(
            slo_class,
            model=self.model,
            expected=law.conditional(0, self.max_model_len),
            max_prompt=self.max_model_len - 1,
        )

    def backlog_s(self) -> float:
        """Seconds to prefill all that is known and not computed, one after the other."""
        left = sum(r.row.num_left for r in self.requests.values() if not r.row.decodes)
        return self.corrected().step_s(left) if left else 0.0

    def check_integrity(self) -> None:
        """Every block is where the requests say, every request is in one queue. Asserts."""
        owners = [request.blocks for request in self.requests.values()]
        for row in self._in_flight.rows if self._in_flight else ():
            if row.request.id not in self.requests:  # cancelled while its step runs
                owners.append(row.request.blocks)
        self.blocks.check_integrity(owners)
        self.queues.check_integrity(self.requests)
        self.holdings.check_integrity(self.requests)

    # --- parts of a step ----------------------------------------------------------------------

    def _plan(self, now_s: float) -> Plan:
        """The plan that was foreseen if it still holds, else one made now."""
        self._num_plans += 1
        foresight, self._foresight = self._foresight, None
        if foresight is not None:
            free_blocks = self.blocks.num_free
            plan = still_good(
                foresight,
                self.requests,
                now_s=now_s,
                free_blocks=free_blocks,
                block_size=self.limits.block_size,
            )
            if plan is not None:
                self.policy = foresight.policy
                self.counters.num_foreseen += 1
                return plan
        return self.policy.plan(self.snapshot(now_s))

    def _begin(self, rows: list[BatchRow], now_s: float, *, room_s: float) -> Batch:
        factor, serial, speculating = 1.0, False, self.speculating
        if speculating is not None:
            speculating.draft(
                rows,
                holdings=self.holdings,
                limits=self.limits,
                model=self.corrected(),
                now_s=now_s,
                room_s=room_s,
                margin_s=self.correction.margin_s + self.way_out_s,
                max_model_len=self.max_model_len,
            )
            factor, serial = speculating.factor, speculating.serial
        batch = make_batch(
            rows,
            model=self.model,
            ratio=self.correction.ratio,
            planned_s=now_s,
            factor=factor,
            serial=serial,
        )
        for row in rows:
            row.request.in_flight = True
        self._in_flight = batch
        self.version += 1
        return batch

    # --- moves of one request -----------------------------------------------------------------

    def _learn(self, row: BatchRow, outcome: Outcome) -> None:
        """What became of a row's drafts."""
        assert self.speculating is not None
        self.speculating.observe(row, outcome)
        self.counters.accepted_drafts += outcome.num_accepted
        self.counters.rejected_drafts += outcome.num_drafted - outcome.num_accepted

    def _append(self, request: Request, outcome: Outcome, end_s: float) -> None:
        """One more token, and perhaps the end."""
        due_s = emit(request, outcome, end_s)
        if end_s > due_s:
            self.counters.num_late_tokens += 1
            promised = self._assert_promises and request.tier is Tier.PROMISED
            if promised and end_s > due_s + LATE_TOLERANCE_S:
                raise PromiseBroken(
                    f"request {request.id} ({request.promise.slo_class}): token"
                    f" {request.num_output} was due at {due_s:.6f} s and came at {end_s:.6f} s"
                )
        if outcome.finished:
            self.laws.observe(request)
            self._end(request, Status.FINISHED, Ending.FINISHED, reason=Reason.NONE, now_s=end_s)
        else:
            self.laws.count_down(request, request.row)

    def _drop(self, request_id: int, now_s: float, *, status: Status, reason: Reason) -> bool:
        request = self.requests.get(request_id)
        if request is None:
            return False
        failed = status is Status.FAILED
        ending = Ending.FAILED if failed else Ending.CANCELLED
        self._end(request, status, ending, reason=reason, now_s=now_s)
        return True

    def _end(
        self, request: Request, status: Status, ending: Ending, *, reason: Reason, now_s: float
    ) -> None:
        """Out of every queue; its blocks are free at once, or when the step that runs is over."""
        del self.requests[request.id]
        self.queues.remove(request)
        request.move(status)
        self.version += 1
        self.counters.end(request, ending, reason=reason, now_s=now_s)
        if not request.in_flight:
            self.holdings.release(request)
        if self.speculating is not None:
            self.speculating.forget(request.id)
