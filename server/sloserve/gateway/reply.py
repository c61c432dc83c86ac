"""Sending an answer over ASGI, with the headers that explain it."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from sloserve.errors import Reason
from sloserve.http.errors import JSON, Refusal
from sloserve.wire import (
    REQUEST_ID,
    SLO_CLASS,
    SLO_DECISION,
    SLO_HOPS,
    SLO_NOTE,
    SLO_REASON,
    SLO_REPLICA,
    SLO_TTFT_MS,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = Mapping[str, Any]
Headers = list[tuple[bytes, bytes]]

PASSED_ON = ("content-type", "cache-control", "x-accel-buffering", "retry-after", "retry-after-ms")
"""Headers of a replica's answer that the client sees."""


def ms(seconds: float) -> str:
    """Milliseconds for a header: three decimals at most."""
    return f"{seconds * 1e3:.3f}".rstrip("0").rstrip(".")


def explanation(
    *,
    request_id: str,
    slo_class: str = "",
    decision: str = "",
    ttft_s: float | None = None,
    replica: str = "",
    reason: Reason = Reason.NONE,
    num_hops: int = 0,
    notes: tuple[str, ...] = (),
) -> Headers:
    """The headers that say what became of a request; what is not known is left out."""
    headers = [(REQUEST_ID.encode(), request_id.encode("latin-1", "replace"))]
    if slo_class:
        headers.append((SLO_CLASS.encode(), slo_class.encode()))
        headers.append((SLO_HOPS.encode(), b"%d" % num_hops))
    if decision:
        headers.append((SLO_DECISION.encode(), decision.encode()))
    if ttft_s is not None:
        headers.append((SLO_TTFT_MS.encode(), ms(ttft_s).encode()))
    if replica:
        headers.append((SLO_REPLICA.encode(), replica.encode("latin-1", "replace")))
    if reason:
        headers.append((SLO_REASON.encode(), reason.value.encode()))
    if notes:
        headers.append((SLO_NOTE.encode(), "; ".join(notes).encode("latin-1", "replace")))
    return headers


async def refuse(send: Send, refusal: Refusal, headers: Headers) -> None:
    """Send a refusal; `headers` win over the refusal's own."""
    given = {name for name, _ in headers}
    own = [(k.encode(), v.encode("latin-1", "replace")) for k, v in refusal.headers.items()]
    headers = [*headers, *((k, v) for k, v in own if k not in given and v)]
    headers.append((b"content-type", JSON.encode()))
    await whole(send, refusal.status, headers, refusal.body)


async def whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole answer."""
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
