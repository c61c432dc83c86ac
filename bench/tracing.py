"""
What tracing costs a gateway: CPU time per request, for one streamed answer of 20 events.

    python -m bench.tracing [--requests 5000] [--rounds 5] [--only off]

One process, no network, no model: the gateway's own ASGI application is given requests, and its
replica is an object that has the answer ready. CPU time is taken, not the clock's, and the best of
the rounds counts, so that a shared machine disturbs little. The exporter is thrown away: sending
is the work of another thread. `--only off` runs on older versions as well, to compare with.
"""

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Callable
from typing import Any

from sloserve.gateway.core import Core
from sloserve.gateway.proxy import CHAT, Proxy
from sloserve.gateway.replicas import Upstream
from sloserve.slo import Decision, parse_service
from sloserve.wire import Frontier, Report

NUM_EVENTS = 20
ADDRESS = "127.0.0.1:1"
MANIFEST = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "bench"},
    "spec": {
        "model": {"source": "builtin://sim"},
        "sloClasses": [{"name": "chat", "ttft": {"target": "100s"}, "tpot": "10s"}],
    },
}
BODY = json.dumps(
    {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "Hello " * 40}]}
).encode()
EVENT = b': n=1 stage=0\ndata: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
HEADERS = {
    "content-type": "text/event-stream",
    "x-slo-decision": "admitted",
    "x-sloserve-prompt-tokens": "60",
}
MODES = ("off", "not sampled", "on")


class Stream:
    """What aiohttp would have read."""

    def __init__(self) -> None:
        self._left = [EVENT] * NUM_EVENTS + [b"data: [DONE]\n\n"]

    async def readany(self) -> bytes:
        """The next event."""
        return self._left.pop(0) if self._left else b""

    def at_eof(self) -> bool:
        """Whether nothing is left."""
        return not self._left


class Response:
    """An answer that is there already."""

    status = 200
    headers = HEADERS

    async def __aenter__(self) -> "Response":
        self.content = Stream()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held."""


class Session:
    """An HTTP client whose replica answers at once."""

    def post(self, url: object, **_: object) -> Response:
        """One request."""
        return Response()


def gateway(**tracing: Any) -> Proxy:
    """A gateway's hot path that knows one replica with room for everything."""
    session: Any = Session()
    source: Any = None
    core = Core(parse_service(MANIFEST), source, session=session, **tracing)
    upstream = core.replicas.known[ADDRESS] = Upstream(ADDRESS)
    everything = {"chat": Frontier(1, 100_000)}
    report = Report("bench", "r0", "ready", frontier=everything, token_supply_per_s=1e6)
    upstream.heard(report, core.clock() + 1e6)  # stays fresh
    return Proxy(core)


async def requests(proxy: Proxy, num: int) -> float:
    """CPU seconds per request."""
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    sent = 0

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message["type"] == "http.response.start" and message["status"] == 200

    async def one() -> None:
        told = [{"type": "http.request", "body": BODY}]

        async def receive() -> Any:
            return told.pop() if told else await asyncio.Event().wait()

        await proxy(scope, receive, send)

    gc.collect()
    start_s = time.process_time()
    for _ in range(num):
        await asyncio.create_task(one())
    took_s = time.process_time() - start_s
    assert sent == num, f"only {sent} of {num} were answered"
    return took_s / num


def traced(sampler: str) -> Proxy:
    """A gateway whose spans are kept, if sampled, and thrown away by another thread."""
    from opentelemetry.sdk.trace import TracerProvider, sampling
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from sloserve.http.otel import OtelTracer

    class Sink(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    which = sampling.ALWAYS_ON if sampler == "on" else sampling.ALWAYS_OFF
    provider = TracerProvider(sampler=which, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Sink()))
    return gateway(tracer=OtelTracer(provider))


def calls_alone(num: int) -> float:
    """CPU seconds per request of the calls that a request makes for traces and logs, both off."""
    from sloserve.gateway import telling
    from sloserve.gateway.peek import peek
    from sloserve.gateway.promise import MISSED
    from sloserve.gateway.ticket import Ticket
    from sloserve.http.offers import resolve_offer
    from sloserve.http.tracing import NO_TRACER
    from sloserve.logs import bind

    seen, resolved = peek(BODY), resolve_offer(parse_service(MANIFEST), {})
    ticket = Ticket("id", True, BODY, seen, resolved, {}, 0.0, 60)
    ticket.decision = Decision.ADMITTED
    upstream = Upstream(ADDRESS)

    def one() -> None:
        span = NO_TRACER.server(CHAT, HEADERS)
        bind(request_id="id", trace_id=span.trace_id)
        hop = span.client("ask replica", telling.hop_attributes(upstream, ticket))
        telling.answered(hop, 200, decision=ticket.decision, reason=ticket.reason)
        telling.decided(ticket, 200, {**HEADERS, **hop.headers})
        telling.ended(ticket, "finished", MISSED)
        hop.end()
        span.end()

    start_s = time.process_time()
    for _ in range(num):
        one()
    return (time.process_time() - start_s) / num


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=MODES)
    args = parser.parse_args()
    makers: dict[str, Callable[[], Proxy]] = {
        "off": gateway,
        "not sampled": lambda: traced("not sampled"),
        "on": lambda: traced("on"),
    }
    modes = [args.only] if args.only else list(MODES)
    best_s = dict.fromkeys(modes, float("inf"))
    proxies = {mode: makers[mode]() for mode in modes}
    for _ in range(args.rounds):
        for mode in modes:
            best_s[mode] = min(best_s[mode], asyncio.run(requests(proxies[mode], args.requests)))
    for mode, took_s in best_s.items():
        print(f"{mode:12} {took_s * 1e6:7.1f} us of CPU per request")
    if args.only is None:
        added_s = min(calls_alone(args.requests) for _ in range(args.rounds))
        print(f"{'calls alone':12} {added_s * 1e6:7.1f} us: what off and silent logs cost")


if __name__ == "__main__":
    main()
