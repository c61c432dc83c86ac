"""The sequences of one HTTP request: one decision for all, their chunks as one stream."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from sloserve.engine.client import EngineClient
from sloserve.engine.events import Broken, Chunk, Decided, Event, Generate
from sloserve.errors import Declined, Failed, Reason, SloserveError, Unavailable
from sloserve.frontend.prompts import Prompt
from sloserve.slo import Decision

WORST_FIRST = (Decision.DECLINED, Decision.DEGRADED, Decision.DEFERRED, Decision.ADMITTED)


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to one prompt; `index` is OpenAI's choice index."""

    index: int
    prompt: Prompt
    generate: Generate


Item = tuple[Job, Chunk | Broken | Decided]


class Sequences:
    """
    Several sequences under one promise: declined when one is, degraded when one is.

    `decide`, then `chunks`, then always `close` (which cancels what still runs).
    """

    def __init__(self, engine: EngineClient, jobs: Sequence[Job]) -> None:
        self._all = list(jobs)
        self._events = [engine.generate(job.generate) for job in self._all]
        self._pumps: list[asyncio.Task[None]] = []

    async def decide(self) -> Decided:
        """
        What becomes of the promise. Declined and broken requests raise, before any output.
        """
        if len(self._events) == 1:
            return _decided(await anext(self._events[0]))
        tasks = [asyncio.ensure_future(anext(events)) for events in self._events]
        try:
            decided = [_decided(event) for event in await asyncio.gather(*tasks)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return min(decided, key=lambda d: WORST_FIRST.index(d.decision))

    async def chunks(self) -> AsyncIterator[Item]:
        """
        Every chunk as it comes; a Broken is the last of its sequence. A Decided is a better
        decision than the first; told of single sequences only: others would have to agree.
        """
        if len(self._events) == 1:
            async for event in self._events[0]:
                yield self._all[0], event
            return
        queue: asyncio.Queue[Item | None] = asyncio.Queue(maxsize=4 * len(self._all))

        async def pump(job: Job, events: AsyncIterator[Event]) -> None:
            async for event in events:
                if not isinstance(event, Decided):
                    await queue.put((job, event))
            await queue.put(None)

        self._pumps = [
            asyncio.create_task(pump(j, e)) for j, e in zip(self._all, self._events, strict=True)
        ]
        num_open = len(self._pumps)
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            else:
                yield item

    async def close(self) -> None:
        """Cancel what still runs."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for events in self._events:
            assert isinstance(events, AsyncGenerator)  # only those can be closed
            with contextlib.suppress(RuntimeError):  # its cancelled task still closes it
                await events.aclose()


def _decided(event: Event) -> Decided:
    match event:
        case Decided(decision=Decision.DECLINED):
            raise Declined(event.reason, event.message, retry_after_s=event.retry_after_s)
        case Decided():
            return event
        case Broken():
            raise broken(event)
        case Chunk():
            raise AssertionError("output before a decision")


def broken(event: Broken) -> SloserveError:
    """The error a Broken event means when nothing was sent yet."""
    if event.reason in (Reason.DRAINING, Reason.LOADING, Reason.QUEUE_FULL):
        return Unavailable(event.reason, event.message)
    return Failed(event.message)
