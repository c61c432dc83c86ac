"""The engine's core: plan, step, emit, account; one turn at a time."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sloserve.engine.clock import Clock
from sloserve.engine.events import Broken, Decided, Event, Generate
from sloserve.engine.generation import Generation
from sloserve.engine.runner import ModelFacts, Runner, Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.stepper import Flight, Stepper
from sloserve.engine.timeline import StepRecord, Timeline
from sloserve.engine.tokenizer import Tokenizer
from sloserve.errors import Reason
from sloserve.planner import Verdict
from sloserve.scheduler import Batch, Outcome, Request, Scheduler, Status, salt_of
from sloserve.slo import Decision, SloClass

log = logging.getLogger(__name__)


class GrammarFailed(Exception):
    """A grammar grew past its limits in the middle of an answer."""


Emit = Callable[[list[tuple[str, Event]]], None]

COOL = 0.5
"""Up to this temperature answers stay close to the greedy one."""

GAP_FADES = 0.9
"""A long pause between two steps is expected again, a little less with every step."""


@dataclass(slots=True)
class _Turn:
    """A step that was planned. `flight`: it runs in the step thread, else it is still to be run."""

    batch: Batch
    now_s: float  # when planning began
    begun_s: float  # when planning was done
    start_s: float  # the end of the step before, or `now_s` after idling
    flight: Flight | None = None


class Engine:
    """
    Everything between an inbox and a runner. Not thread-safe: one caller (`EngineThread`, or a
    test with virtual time) feeds it and turns it.

    A turn is `begin` and `finish`. With `overlap` the runner's steps have a thread of their own:
    between the two the caller may go on feeding, and have the next step planned by `foresee`.

    `emit` gets events as (key, event), in batches: decisions before the step runs, tokens after.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        clock: Clock,
        emit: Emit,
        before_step: Callable[[float], None] = lambda now_s: None,
        overlap: bool = False,
    ) -> None:
        """`before_step` is called with the time when a step is about to run, or has just begun."""
        self.scheduler = scheduler
        self.runner = runner
        self.tokenizer = tokenizer
        self.clock = clock
        self.emit = emit
        self._before_step = before_step
        self.timeline = Timeline()
        self.progress_s = clock.now_s()
        """When a step last ended, or there was nothing to do."""
        self.num_failures_in_a_row = 0
        """Steps that broke since the last one that did not."""
        self._generations: dict[int, Generation] = {}
        self._id_of: dict[str, int] = {}
        self._texts: dict[tuple[int, bool], str] = {}  # of single tokens
        self._ids = itertools.count(1)
        self._outbox: list[tuple[str, Event]] = []
        self._last_end_s: float | None = None  # end of the last step; None after idling
        self._gap_s = 0.0  # from the end of a step to planning: the longest lately
        self._stepper = Stepper(clock) if overlap else None
        self._turn: _Turn | None = None  # begun and not finished
        self._to_forget: list[int] = []  # by the runner, once the step that runs has ended

    @property
    def facts(self) -> ModelFacts:
        """Facts of the model that is served."""
        return self.runner.facts

    @property
    def has_work(self) -> bool:
        """Whether any request is alive."""
        return bool(self._generations)

    def adapters(self, status: Status) -> list[str]:
        """Adapters of the requests that stand so, in alphabetical order. Any thread may ask."""
        found = {g.adapter for g in list(self._generations.values()) if g.request.status is status}
        return sorted(found - {""})

    # --- the inbox ----------------------------------------------------------------------------

    def add(self, generate: Generate) -> None:
        """A new request. Its decision comes with the next turn; Broken, should this fail."""
        try:
            self._add(generate)
        except Exception as error:
            told = {"request_id": generate.request_id}
            log.error("a request could not be taken in", exc_info=error, extra=told)
            self._outbox.append((generate.key, _broken(error)))

    def _add(self, generate: Generate) -> None:
        sampling = generate.sampling
        request = Request(
            id=next(self._ids),
            promise=generate.promise,
            arrival_s=generate.arrival_s,
            tokens=list(generate.prompt),
            num_prompt=len(generate.prompt),
            max_output=sampling.max_tokens,
            last_hop=generate.last_hop,
            cache_salt=salt_of(generate.cache_salt, adapter=generate.adapter),
            draft_group=_draft_group(generate),
            reuse_prefix=sampling.prompt_logprobs is None,  # those need every position computed
            streamed=generate.streamed,
        )
        generation = Generation(
            generate,
            request,
            facts=self.facts,
            tokenizer=self.tokenizer,
            texts=self._texts,
        )
        if sampling.grammar is not None:
            request.num_fitting = generation.num_fitting
        self.scheduler.add(request, self.clock.now_s())
        self._generations[request.id] = generation
        self._id_of[generate.key] = request.id

    def cancel(self, key: str, *, reason: Reason = Reason.CLIENT_GONE) -> None:
        """The client gave up, or was given up; no further event is emitted for it."""
        request_id = self._id_of.get(key)
        if request_id is not None:
            self.scheduler.cancel(request_id, self.clock.now_s(), reason=reason)
            self._forget(request_id)

    def set_classes(self, classes: Iterable[SloClass]) -> None:
        """Report on these classes from now on."""
        self.scheduler.set_classes(classes)

    # --- one turn -----------------------------------------------------------------------------

    def turn(self) -> bool:
        """Plan and run one step; False when there was nothing to run."""
        begun = self.begin()
        if begun:
            self.finish()
        return begun

    def begin(self, *, landed: Callable[[], None] = lambda: None) -> bool:
        """
        Plan a step and, with `overlap`, start it; False when there was nothing to run.

        `landed` is called from the step's thread when the step has ended.
        """
        now_s = self.clock.now_s()
        batch = self.scheduler.schedule(now_s)
        begun_s = self.clock.now_s()
        if batch is not None:
            start_s = now_s if self._last_end_s is None else self._last_end_s
            self._gap_s = max(now_s - start_s, GAP_FADES * self._gap_s)
            self._turn = _Turn(batch, now_s, begun_s, start_s)
            if self._stepper is not None:
                compute = self._computation(batch)
                self._turn.flight = self._stepper.start(compute, landed=landed)
        self._tell_decisions()
        if batch is None:
            self._last_end_s = None
            if not self.has_work:
                self.progress_s = begun_s
            return False
        self._before_step(begun_s)
        return True

    @property
    def in_flight(self) -> bool:
        """Whether a step runs beside the caller right now."""
        return self._flight is not None and not self._flight.ended

    def foresee(self) -> None:
        """While a step runs: plan the next one, unless that is done, and tell what is certain."""
        assert self._turn is not None, "no step runs"
        self.scheduler.foresee(self._turn.start_s, self.clock.now_s(), gap_s=self._gap_s)
        self._tell_decisions()

    def finish(self) -> None:
        """
        Run the step that was begun, or wait for its end; emit and account what came of it.

        A step that breaks ends its requests with Broken; the next turn goes on with the others.
        """
        turn, self._turn = self._turn, None
        assert turn is not None, "no step was begun"
        batch = turn.batch
        try:
            if turn.flight is None:
                sampled = self._computation(batch)()
                end_s = self.clock.now_s()
            else:
                sampled, end_s = turn.flight.wait(), turn.flight.end_s
            outcomes = self._accept(batch, sampled, end_s)
        except Exception as error:
            self._step_broke(batch, error)
            return
        self.scheduler.commit(batch, outcomes, turn.start_s, end_s)
        num_accepted = sum([outcome.num_accepted for outcome in outcomes.values()])
        mask_s = sum([one.mask_s for one in sampled])
        self._record(turn, end_s, num_accepted=num_accepted, mask_s=mask_s)
        self._last_end_s = self.progress_s = end_s
        self.num_failures_in_a_row = 0
        for request_id, outcome in outcomes.items():
            if outcome.finished:
                self._forget(request_id)
        self._let_forget()
        self._flush()

    def close(self) -> None:
        """Give back threads and the runner's memory; a step that runs is waited for."""
        if self._stepper is not None:
            self._stepper.close()
        self.runner.close()

    def break_all(self, error: BaseException) -> None:
        """The loop itself broke: every request ends with Broken, so that nobody waits forever."""
        log.error("the engine loop broke", exc_info=error)
        self.num_failures_in_a_row += 1
        turn, self._turn = self._turn, None
        if turn is not None:
            if turn.flight is not None:
                with contextlib.suppress(BaseException):  # what matters is that it is over
                    turn.flight.wait()
            self.scheduler.fail(turn.batch, self.clock.now_s())
            self._let_forget()
        for request_id in list(self._generations):
            self._break(request_id, error)
        self._last_end_s = None
        self._flush()

    # --- parts of a turn ----------------------------------------------------------------------

    @property
    def _flight(self) -> Flight | None:
        return None if self._turn is None else self._turn.flight

    def _computation(self, batch: Batch) -> Callable[[], list[Sampled]]:
        """What the runner has to do; the rows are made up here and now."""
        runner, rows = self.runner, self._step_rows(batch)
        return lambda: runner.step(rows)

    def _tell_decisions(self) -> None:
        for request, decision, verdict in self.scheduler.decisions():
            self._decided(request, decision, verdict)
        self._flush()

    def _step_rows(self, batch: Batch) -> list[StepRow]:
        generations = self._generations
        rows = []
        for row in batch.rows:  # positional, like all that is made per token: half the time
            request = row.request
            generation = generations[request.id]
            rows.append(
                StepRow(
                    request.id,
                    request.tokens,
                    request.num_prompt,
                    row.start,
                    row.count,
                    request.blocks,
                    row.sample,
                    generation.sampling,
                    generation.matcher,
                    row.num_drafts,
                    row.drafts,
                    generation.adapter,
                )
            )
        return rows

    def _accept(self, batch: Batch, sampled: list[Sampled], end_s: float) -> dict[int, Outcome]:
        """Tokens become chunks in the outbox, and outcomes for the scheduler."""
        outcomes = {}
        chunks: list[tuple[str, Event]] = []
        failed: list[tuple[int, str]] = []
        generations = self._generations
        for row, one in zip(batch.rows, sampled, strict=True):
            request_id = row.request.id
            generation = generations.get(request_id)
            if generation is None:  # cancelled while the step ran
                continue
            if one.prompt:
                generation.hold_prompt(one, start=row.start)
            if row.sample:
                new, outcomes[request_id] = generation.accept(one, at_s=end_s)
                if generation.failure:
                    failed.append((request_id, generation.failure))
                else:
                    key = generation.key
                    chunks += [(key, chunk) for chunk in new]
        self._outbox += chunks
        for request_id, why in failed:
            del outcomes[request_id]
            self._break(request_id, GrammarFailed(why))
        return outcomes

    def _record(self, turn: _Turn, end_s: float, *, num_accepted: int, mask_s: float) -> None:
        batch = turn.batch
        self.timeline.add(
            StepRecord(
                number=self.timeline.num_steps + 1,
                planned_s=turn.now_s,
                plan_s=turn.begun_s - turn.now_s,
                predicted_s=batch.predicted_s,
                actual_s=end_s - turn.begun_s,
                period_s=end_s - turn.start_s,
                num_rows=len(batch.rows),
                num_decodes=batch.num_decodes,
                num_prefill_tokens=batch.num_prefill_tokens,
                num_best_effort_tokens=batch.num_best_effort_tokens,
                context=batch.context,
                pairs=batch.pairs,
                num_waiting=self.scheduler.num_waiting,
                free_blocks=self.scheduler.blocks.num_free,
                num_draft_tokens=batch.num_draft_tokens,
                num_accepted_drafts=num_accepted,
                mask_s=mask_s,
            )
        )

    def _decided(self, request: Request, decision: Decision, verdict: Verdict | None) -> None:
        generation = self._generations[request.id]
        event = Decided(decision)
        if verdict is not None:
            event = Decided(decision, verdict.reason, verdict.message, verdict.retry_after_s)
        self._outbox.append((generation.key, event))
        if decision is Decision.DECLINED:
            self._forget(request.id)

    def _step_broke(self, batch: Batch, error: Exception) -> None:
        log.error("a step broke", exc_info=error, extra={"num_rows": len(batch.rows)})
        self.num_failures_in_a_row += 1
        self._last_end_s = None
        for request in self.scheduler.fail(batch, self.clock.now_s()):
            self._break(request.id, error)
        self._let_forget()
        self._flush()

    def _break(self, request_id: int, error: BaseException) -> None:
        key = self._generations[request_id].key
        self._outbox.append((key, _broken(error)))
        self.scheduler.abort(request_id, self.clock.now_s())
        self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        del self._id_of[self._generations.pop(request_id).key]
        if self._flight is None:
            self.runner.forget(request_id)
        else:
            self._to_forget.append(request_id)

    def _let_forget(self) -> None:
        """What was forgotten while a step ran: the runner is not to be touched meanwhile."""
        for request_id in self._to_forget:
            self.runner.forget(request_id)
        self._to_forget.clear()

    def _flush(self) -> None:
        if self._outbox:
            events, self._outbox = self._outbox, []
            self.emit(events)


def _draft_group(generate: Generate) -> str:
    """Requests whose drafts fare alike."""
    group = f"{generate.promise.slo_class} {_fate(generate.sampling)}"
    return f"{group} of {generate.adapter}" if generate.adapter else group


def _fate(sampling: SamplingParams) -> str:
    """How far a choice of tokens strays from the likeliest, and what binds it: so drafts fare."""
    bound = "" if sampling.grammar is None else " in shape"
    if sampling.temperature < 1e-5 or sampling.top_k == 1:
        return "greedy" + bound
    return ("cool" if sampling.temperature <= COOL else "warm") + bound


def _broken(error: BaseException) -> Broken:
    if isinstance(error, GrammarFailed):
        return Broken(Reason.NONE, f"the answer's grammar can't be followed any further: {error}")
    return Broken(Reason.NONE, f"the engine failed: {type(error).__name__}: {error}")
