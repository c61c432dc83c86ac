"""The engine as asyncio code sees it: ask for an answer, read its events, hang up."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import asdict, replace

from sloserve.engine.clock import Clock, RealClock
from sloserve.engine.events import Broken, Chunk, Decided, Event, Generate
from sloserve.engine.loop import Engine
from sloserve.engine.reporter import Reporter
from sloserve.engine.runner import ModelFacts, Runner
from sloserve.engine.service import Cancel, EngineThread, Reclass, Stop, WayOut
from sloserve.engine.timeline import StepRecord
from sloserve.engine.tokenizer import Tokenizer
from sloserve.errors import BadInput, Failed, Reason, Unavailable
from sloserve.scheduler import Counters, Scheduler, Status
from sloserve.slo import Decision, SloClass
from sloserve.wire import Report

MAX_BUFFERED_EVENTS = 2048
"""Events that a reader may fall behind by before it is given up."""
STALL_S = 10.0
MAX_FAILURES_IN_A_ROW = 3


class _Stream:
    """The events of one request on their way to its reader."""

    __slots__ = ("asked_s", "ended", "events", "waiter")

    def __init__(self, asked_s: float) -> None:
        self.asked_s = asked_s
        self.events: deque[Event] = deque()
        self.ended = False  # the last event is among those delivered
        self.waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        self.events.append(event)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def get(self) -> Event:
        while not self.events:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
            self.waiter = None
        return self.events.popleft()


class EngineClient:
    """
    One engine, used from one event loop.

    Exists before its engine does (`phase` "loading"), so that a server can answer while a model
    loads; `start` brings the engine ("ready"), `drain` lets it finish ("draining").
    """

    def __init__(
        self,
        *,
        service: str = "",
        replica: str = "",
        clock: Clock | None = None,
        max_buffered_events: int = MAX_BUFFERED_EVENTS,
    ) -> None:
        self.clock: Clock = clock or RealClock()
        self.service = service
        self.replica = replica
        self._max_buffered_events = max_buffered_events
        self._thread: EngineThread | None = None
        self._reporter: Reporter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, _Stream] = {}
        self._draining = False
        self._idle: asyncio.Event | None = None
        self._generation = 0

    # --- life ---------------------------------------------------------------------------------

    def start(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        overlap: bool | None = None,
    ) -> None:
        """
        Begin to serve; called in the event loop that reads the answers.

        `overlap`: plan beside the running step; None: where the runner's steps allow it.
        """
        assert self._thread is None, "this client has its engine already"
        self._loop = asyncio.get_running_loop()
        self._reporter = Reporter(
            scheduler,
            runner.facts,
            service=self.service,
            replica=self.replica,
            config_generation=self._generation,
        )
        engine = Engine(
            scheduler,
            runner,
            tokenizer,
            clock=self.clock,
            emit=self._hand_over,
            before_step=self._reporter.offer,
            overlap=runner.facts.steps_aside if overlap is None else overlap,
        )
        self._thread = EngineThread(engine, self._reporter, on_end=self._ended)
        self._thread.start()

    def drain(self) -> None:
        """Refuse new requests from now on; the rest finish (`finished` waits for them)."""
        self._draining = True

    async def finished(self, *, timeout_s: float | None = None) -> bool:
        """Wait until no request is left. False when some were not within `timeout_s`."""
        if not self._streams:
            return True
        self._idle = asyncio.Event()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the thread now. Whoever still reads gets Broken."""
        self._draining = True
        if self._thread is not None:
            self._thread.put(Stop())
            await asyncio.to_thread(self._thread.join, timeout_s)
        self._break_streams()

    def set_classes(self, classes: Iterable[SloClass], *, generation: int | None = None) -> None:
        """Another manifest is in force: report on its classes from now on."""
        if generation is not None:
            self._generation = generation
        if self._thread is not None:
            self._thread.put(Reclass(tuple(classes), self._generation))

    def set_way_out(self, way_out_s: float) -> None:
        """The time from emission to the client's socket (its p99): deadlines are kept there."""
        if self._thread is not None:
            self._thread.put(WayOut(way_out_s))

    # --- answers ------------------------------------------------------------------------------

    async def generate(self, ask: Generate) -> AsyncGenerator[Event, None]:
        """
        The events of one request: Decided first, then Chunks; the last is a declined Decided, a
        Chunk with a finish_reason, or Broken.

        Closing the iterator (`contextlib.aclosing`) or cancelling the task that reads it cancels
        the request. Raises BadInput for what can't be served at all, and Unavailable while
        loading or draining.
        """
        thread = self._check(ask)
        stream = self._streams[ask.key] = _Stream(self.clock.now_s())
        thread.put(ask)
        try:
            while True:
                event = await stream.get()
                yield event
                if is_last(event):
                    return
        finally:
            del self._streams[ask.key]
            if not stream.ended:
                thread.put(Cancel(ask.key, Reason.CLIENT_GONE))
            if not self._streams and self._idle is not None:
                self._idle.set()

    # --- how it is ----------------------------------------------------------------------------

    def phase(self) -> str:
        """ "loading", "ready" or "draining"."""
        if self._draining:
            return "draining"
        return "loading" if self._thread is None else "ready"

    def stalled(self, *, after_s: float = STALL_S) -> bool:
        """
        Whether something is badly wrong: work waits but no step ended for `after_s`, every step
        breaks, or the thread is gone.
        """
        if self._thread is None:
            return False
        engine = self._thread.engine
        if engine.num_failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            return True
        if not self._thread.alive:
            return not self._draining
        # An answer that is complete and not read yet is the reader's work, not the engine's.
        asked_s = [stream.asked_s for stream in self._streams.values() if not stream.ended]
        if not asked_s:
            return False
        return self.clock.now_s() - max(engine.progress_s, min(asked_s)) > after_s

    def report(self) -> Report:
        """How this replica feels; at most a step or so old."""
        if self._reporter is None:
            return Report(
                service=self.service,
                replica=self.replica,
                state=self.phase(),
                config_generation=self._generation,
            )
        report = self._reporter.report
        phase = self.phase()
        return report if report.state == phase else replace(report, state=phase)

    @property
    def num_running(self) -> int:
        """Requests that have not ended, waiting ones included."""
        return len(self._streams)

    def adapters(self, status: Status) -> list[str]:
        """Adapters of the requests that stand so; none while loading."""
        return [] if self._thread is None else self._thread.engine.adapters(status)

    @property
    def counters(self) -> Counters | None:
        """The engine's own totals; None while loading. Read-only here."""
        return None if self._thread is None else self._thread.engine.scheduler.counters

    @property
    def scheduler(self) -> Scheduler | None:
        """The scheduler, for figures only: it lives in the engine's thread."""
        return None if self._thread is None else self._thread.engine.scheduler

    @property
    def facts(self) -> ModelFacts | None:
        """Facts of the model; None while loading."""
        return None if self._thread is None else self._thread.engine.facts

    def steps(self) -> list[dict[str, object]]:
        """The latest steps as JSON values, oldest first."""
        return [asdict(record) for record in self.steps_since(0)]

    def steps_since(self, number: int) -> list[StepRecord]:
        """The steps after that number that are still remembered, oldest first."""
        return [] if self._thread is None else self._thread.engine.timeline.since(number)

    # --- between the threads ------------------------------------------------------------------

    def _hand_over(self, events: list[tuple[str, Event]]) -> None:
        """From the engine's thread: one wake-up of the event loop for all events of a step."""
        self._call_in_loop(lambda: self._deliver(events))

    def _ended(self) -> None:
        """From the engine's thread, as its last deed."""
        self._call_in_loop(self._break_streams)

    def _call_in_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        # A closed event loop has no readers left either.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def _deliver(self, events: list[tuple[str, Event]]) -> None:
        for key, event in events:
            stream = self._streams.get(key)
            if stream is None or stream.ended:
                continue
            if len(stream.events) >= self._max_buffered_events:
                self._give_up(key, stream)
                continue
            stream.put(event)
            stream.ended = is_last(event)

    def _give_up(self, key: str, stream: _Stream) -> None:
        """The reader is too slow: it gets no more, and its blocks go back."""
        assert self._thread is not None
        stream.ended = True
        text = f"the client is {len(stream.events)} events behind: it does not read its stream"
        stream.events.clear()
        stream.put(Broken(Reason.SLOW_READER, text))
        self._thread.put(Cancel(key, Reason.SLOW_READER))

    def _break_streams(self) -> None:
        """The engine is gone, wanted or not: nobody waits for it."""
        text, reason = "the engine ended", Reason.NONE
        if self._draining:
            text, reason = "the replica was stopped", Reason.DRAINING
        for stream in self._streams.values():
            if not stream.ended:
                stream.ended = True
                stream.put(Broken(reason, text))

    def _check(self, generate: Generate) -> EngineThread:
        thread = self._thread
        if self._draining:
            raise Unavailable(Reason.DRAINING, "this replica is going away")
        if thread is None:
            raise Unavailable(Reason.LOADING, "the model is not loaded yet", retry_after_s=5.0)
        if not thread.alive:
            raise Failed("the engine ended")
        num_prompt = len(generate.prompt)
        max_tokens = generate.sampling.max_tokens
        if num_prompt == 0:
            raise BadInput("the prompt has no tokens", field="prompt")
        if max_tokens < 1:
            raise BadInput(f"must be at least 1, not {max_tokens}", field="max_tokens")
        room = thread.engine.scheduler.max_model_len
        if num_prompt + max_tokens > room:
            raise BadInput(
                f"{num_prompt} prompt tokens and max_tokens {max_tokens} are"
                f" {num_prompt + max_tokens}, this replica takes {room}",
                field="prompt" if num_prompt >= room else "max_tokens",
            )
        if generate.key in self._streams:
            raise BadInput(f"{generate.key!r} is in use", field="request id")
        return thread


def is_last(event: Event) -> bool:
    """Whether no event follows this one."""
    match event:
        case Decided():
            return event.decision is Decision.DECLINED
        case Chunk():
            return event.finish_reason is not None
        case Broken():
            return True
