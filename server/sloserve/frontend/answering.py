"""
One accepted body on its way to an answer: decide, then stream or collect, count, clean up.

Nothing is sent before the first token (or the refusal): until then another replica can take
the request over. When the client goes away the sequences are cancelled at once.
"""

import asyncio
import contextlib
import logging

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sloserve.engine.events import Broken, Decided
from sloserve.errors import Declined, Unavailable
from sloserve.frontend import telling
from sloserve.frontend.choices import Choices
from sloserve.frontend.latencies import Latencies
from sloserve.frontend.replica import Replica
from sloserve.frontend.sequences import Sequences, broken
from sloserve.frontend.wayout import WayOut
from sloserve.http import report, sse
from sloserve.http.answers import encode
from sloserve.http.errors import JSON, refusal
from sloserve.http.tracing import NO_SPAN, Span
from sloserve.slo import Decision, Promise
from sloserve.wire import REPORT, SLO_DECISION, SLO_REASON, STAGE_TOKENS, stage_tokens

log = logging.getLogger(__name__)

SLOW_READER_S = 60.0
"""A client that takes nothing for this long is cut off."""
WATCH_S = 5.0
BLOCKED_S = 0.1
"""A write that takes longer waited for its reader."""


class Answering(Response):
    """The response to one generation; sends itself, in OpenAI's shapes."""

    def __init__(
        self, replica: Replica, sequences: Sequences, choices: Choices, latencies: Latencies,
        way_out: WayOut, *, promise: Promise, headers: dict[str, str], streamed: bool,
        tell_gateway: bool, span: Span = NO_SPAN,
    ) -> None:  # fmt: skip
        super().__init__()
        self._replica = replica
        self._sequences = sequences
        self._choices = choices
        self._latencies = latencies
        self._way_out = way_out
        self._promise = promise
        self._span = span
        self._begun_s = replica.clock()
        self._verdict: Decided | None = None
        self._outcome = "cancelled"
        self._status = 0
        self._extra = headers
        self._streamed = streamed
        self._tell_gateway = tell_gateway
        self._started = False
        self._sending_since_s: float | None = None
        self._read_again_s = 0.0
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        work = asyncio.create_task(self._answer())
        gone = asyncio.create_task(_disconnected(receive))
        try:
            while not work.done() and not gone.done():
                await asyncio.wait(
                    {work, gone}, timeout=WATCH_S, return_when=asyncio.FIRST_COMPLETED
                )
                if self._is_stuck():
                    log.info("client reads nothing, cut off")
                    break
        finally:
            gone.cancel()
            work.cancel()
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await work
            finally:
                telling.ended(
                    self._span, self._verdict, self._outcome, promise=self._promise,
                    choices=self._choices, latencies=self._latencies, begun_s=self._begun_s,
                    status=self._status,
                )  # fmt: skip

    async def _answer(self) -> None:
        """Decide and answer; always close the sequences, which cancels what still runs."""
        try:
            self._decided(await self._sequences.decide())
            whole = await (self._stream() if self._streamed else self._collect())
            self._outcome = "finished" if whole else "failed"
            if whole:
                self._latencies.record(num_prompt=self._choices.num_prompt)
        except Declined as error:
            self._outcome = "refused"
            self._decided(
                Decided(Decision.DECLINED, error.reason, error.message, error.retry_after_s)
            )
            await self._refuse(error)
        except Exception as error:
            self._outcome = "failed"
            reason = error.reason.value if isinstance(error, Unavailable) else type(error).__name__
            telling.broken(reason, num_output=self._choices.usage().num_output)
            await self._refuse(error)
        finally:
            await self._sequences.close()

    def _decided(self, decided: Decided) -> None:
        self._verdict = decided
        self._latencies.decided(self._replica.clock())
        self._extra[SLO_DECISION] = decided.decision.value
        self._extra.pop(SLO_REASON, None)
        if decided.reason:
            self._extra[SLO_REASON] = decided.reason.value
        telling.decided(
            decided, slo_class=self._promise.slo_class, num_prompt=self._choices.num_prompt
        )

    async def _stream(self) -> bool:
        """Send chunks as events; False when it broke on the way."""
        choices = self._choices
        async for job, item in self._sequences.chunks():
            if isinstance(item, Broken):
                if not self._started:
                    raise broken(item)
                telling.broken(item.reason.value, num_output=choices.usage().num_output)
                await self._body(choices.lost(job.index, item), more=False)
                return False
            if isinstance(item, Decided):
                self._decided(item)
                continue
            num_new = self._latencies.emitted(job.index, item)
            data = choices.event(job, item, num_new=num_new)
            if not data:
                continue
            if not self._started:
                await self._start(200, {"content-type": sse.CONTENT_TYPE, **sse.HEADERS})
            await self._event(data, item.emitted_s)
        return True

    async def _event(self, data: bytes, emitted_s: float) -> None:
        """
        Write an event and tell how long it took to get here. What was emitted while this client
        did not read says nothing about the others.
        """
        clock = self._replica.clock
        before_s = clock()
        if emitted_s >= self._read_again_s:
            self._way_out.took(before_s - emitted_s, now_s=before_s)
        await self._body(data, more=not self._choices.all_done)
        after_s = clock()
        if after_s - before_s > BLOCKED_S:
            self._read_again_s = after_s

    async def _collect(self) -> bool:
        """Send the whole answer at its end."""
        async for job, item in self._sequences.chunks():
            if isinstance(item, Broken):
                raise broken(item)
            if isinstance(item, Decided):
                self._decided(item)
                continue
            self._latencies.emitted(job.index, item)
            self._choices.collect(job, item)
        if self._tell_gateway:
            tracks = self._latencies.tracks
            self._extra[STAGE_TOKENS] = stage_tokens([track.stage_tokens for track in tracks])
        await self._whole(200, self._choices.whole(), {})
        return True

    async def _refuse(self, error: Exception) -> None:
        """Tell an error: as a status, or as the last event of a stream."""
        refused = refusal(error)
        if self._started:
            await self._body(sse.event(encode({"error": refused.error})) + sse.DONE, more=False)
            return
        await self._whole(refused.status, refused.body, refused.headers)

    async def _whole(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        size = {"content-length": str(len(body)), "content-type": JSON}
        await self._start(status, {**size, **headers})
        await self._body(body, more=False)

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self._started, self._status = True, status
        all_headers = {**headers, **self._extra}
        if self._tell_gateway:
            all_headers[REPORT] = report.to_header(self._replica.report())
        if self._replica.draining:
            all_headers["connection"] = "close"
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in all_headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, data: bytes, *, more: bool) -> None:
        self._sending_since_s = self._replica.clock()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending_since_s = None

    def _is_stuck(self) -> bool:
        since_s = self._sending_since_s
        return since_s is not None and self._replica.clock() - since_s > SLOW_READER_S


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
