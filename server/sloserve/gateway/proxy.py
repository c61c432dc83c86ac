"""
The two routes that carry the load, as plain ASGI: FastAPI's own path costs as much as all of
this together.
"""

import asyncio
import random
from collections.abc import Mapping

from sloserve.errors import Reason, SloserveError
from sloserve.gateway.core import Core
from sloserve.gateway.exchange import Exchange
from sloserve.gateway.keys import Key, KeyRefused
from sloserve.gateway.passing import NO_DECISION, count
from sloserve.gateway.peek import peek
from sloserve.gateway.promise import MISSED, NOT_COUNTED
from sloserve.gateway.reply import Receive, Scope, Send, explanation, refuse
from sloserve.gateway.telling import refused
from sloserve.gateway.ticket import Ticket
from sloserve.http.errors import TooLarge, refusal
from sloserve.http.offers import ResolvedOffer, resolve_offer
from sloserve.http.tracing import Span
from sloserve.logs import bind
from sloserve.routing import prefix_keys
from sloserve.wire import (
    ANNOTATE,
    PROMISE,
    REQUEST_ID,
    SESSION_ID,
    SLO_CLASS,
    SLO_CLASS_ALIASES,
    SLO_STAGE,
    SLO_TPOT_MS,
    SLO_TPOT_MS_ALIASES,
    SLO_TTFT_MS,
    SLO_TTFT_MS_ALIASES,
    offer_to_json,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PATHS = (CHAT, COMPLETIONS)
SPAN_NAMES = {path: f"POST {path}" for path in PATHS}
FORWARDED = ("content-type", "user-agent", SESSION_ID)
"""The client's headers that a replica sees, beside the promise; all others stay here."""
TRACE_CONTEXT = ("traceparent", "tracestate")
"""And these, unless the request is traced here: then they come from the span of each hop."""
OFFER_HEADERS = (
    *(SLO_CLASS, *SLO_CLASS_ALIASES),
    *(SLO_TTFT_MS, *SLO_TTFT_MS_ALIASES),
    *(SLO_TPOT_MS, *SLO_TPOT_MS_ALIASES),
    SLO_STAGE,
)
"""All that `resolve_offer` reads."""
MAX_KINDS = 256
MAX_ID_CHARS = 128


class ClientGone(Exception):
    """The client hung up before its request was whole."""


class Proxy:
    """ASGI application for `PATHS`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._resolved: dict[tuple[str | None, ...], tuple[ResolvedOffer, str]] = {}
        self._resolved_for = core.spec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        core = self._core
        arrival_s = core.clock()
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request_id = _request_id(headers)
        span = core.tracer.server(SPAN_NAMES[scope["path"]], headers)
        bind(request_id=request_id, trace_id=span.trace_id)
        key: Key | None = None
        try:
            found = core.keyring.authenticate(headers.get("authorization"))
            core.keyring.begin(found, arrival_s)
            key = found
            body = await _read(receive, core.settings.max_body_bytes)
            ticket = self._ticket(
                key, headers, body, chat=scope["path"] == CHAT, request_id=request_id,
                arrival_s=arrival_s, span=span,
            )  # fmt: skip
            await self._serve(ticket, receive, send)
        except SloserveError as error:
            reason = Reason.RATE_LIMIT if key is None and _status(error) == 429 else Reason.NONE
            core.ledger.ended(
                "", decision=NO_DECISION, outcome="refused", reason=reason, judgement=NOT_COUNTED
            )
            told = error.refusal if isinstance(error, KeyRefused) else refusal(error)
            refused(span, told)
            await refuse(send, told, explanation(request_id=request_id))
        except ClientGone:
            core.ledger.ended(
                "", decision=NO_DECISION, outcome="cancelled", reason=Reason.CLIENT_GONE,
                judgement=NOT_COUNTED,
            )  # fmt: skip
        finally:
            span.end()
            if key is not None:
                core.keyring.end(key)

    def _ticket(
        self,
        key: Key,
        headers: Mapping[str, str],
        body: bytes,
        *,
        chat: bool,
        request_id: str,
        arrival_s: float,
        span: Span,
    ) -> Ticket:
        """Raises SloserveError when the request is refused before it has a class."""
        core = self._core
        seen = peek(body)
        model = core.spec.model.served_name if seen.model is None else seen.model
        key.check_model(model)
        core.check_model(model)
        resolved, promise = self._resolve(headers, key)
        key.check_class(resolved.offer.slo_class)
        passed = FORWARDED if span.trace_id else (*FORWARDED, *TRACE_CONTEXT)
        forwarded = {name: headers[name] for name in passed if name in headers}
        forwarded[REQUEST_ID] = request_id
        forwarded[PROMISE] = promise
        forwarded[ANNOTATE] = "1"
        ratio = core.state.tokens_per_char.ratio
        return Ticket(
            request_id=request_id,
            chat=chat,
            body=body,
            seen=seen,
            resolved=resolved,
            forwarded=forwarded,
            arrival_s=arrival_s,
            num_prompt=max(1, seen.num_ids + round(len(seen.text) * ratio)),
            prefixes=prefix_keys(
                seen.text,
                tokens_per_char=ratio,
                adapter="" if model == core.spec.model.served_name else model,
            ),
            span=span,
        )

    def _resolve(self, headers: Mapping[str, str], key: Key) -> tuple[ResolvedOffer, str]:
        """The offer, and the header that carries it; requests of one kind share both."""
        spec = self._core.spec
        if spec is not self._resolved_for:
            self._resolved_for = spec
            self._resolved.clear()
        default_class = key.class_default(spec.default_class)
        kind = (default_class, *map(headers.get, OFFER_HEADERS))
        found = self._resolved.get(kind)
        if found is None:
            resolved = resolve_offer(spec, headers, default_class)
            found = (resolved, offer_to_json(resolved.offer))
            if len(self._resolved) < MAX_KINDS:
                self._resolved[kind] = found
        return found

    async def _serve(self, ticket: Ticket, receive: Receive, send: Send) -> None:
        try:
            await Exchange(self._core, ticket, send).run(receive)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            ticket.reason = Reason.NONE
            ticket.status = ticket.status or 500
            count(self._core, ticket, "failed", MISSED)
            told = refusal(error)  # logs it
            if ticket.sent:
                raise  # the server cuts the connection: nothing else can be said any more
            await refuse(send, told, ticket.explanation())


def closing(send: Send) -> Send:
    """`send`, telling the client that this connection takes no further request."""

    async def closing_send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            assert isinstance(headers, list)
            message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await send(message)

    return closing_send  # type: ignore[return-value]


def _status(error: SloserveError) -> int:
    return error.refusal.status if isinstance(error, KeyRefused) else 0


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get(REQUEST_ID, "")
    if given and len(given) <= MAX_ID_CHARS and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(96):024x}"


async def _read(receive: Receive, max_bytes: int) -> bytes:
    """The whole body. Raises TooLarge, ClientGone."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body = message.get("body", b"")
        if len(body) <= max_bytes:
            return bytes(body)
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise TooLarge(f"the body is longer than {max_bytes} bytes")
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
