"""A real gateway in front of real replicas with a simulated model, in one process and one loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from sloserve.engine.client import EngineClient
from sloserve.frontend.app import create_app as create_replica_app
from sloserve.frontend.loading import load, make_scheduler
from sloserve.frontend.replica import Replica, Served
from sloserve.gateway.app import create_app as create_gateway_app
from sloserve.gateway.core import Core, new_session
from sloserve.gateway.keys import Key
from sloserve.gateway.settings import Settings
from sloserve.gateway.sources import ListSource
from sloserve.http.otel import OtelTracer
from sloserve.http.serve import Listener, bind, serving, url_of
from sloserve.http.tracing import NO_TRACER, Tracer
from sloserve.slo import ServiceSpec, parse_service

CLASSES: list[dict[str, Any]] = [
    {"name": "chat", "ttft": {"target": "20s"}, "tpot": "5s"},
    {
        "name": "impossible",
        "ttft": {"target": "1ms"},
        "tpot": "5s",
        "onInfeasible": "Decline",
    },
    {"name": "soft", "ttft": {"target": "1ms"}, "tpot": "5s"},
]


def a_spec(generation: int = 1) -> ServiceSpec:
    """A service named `assistant` on the simulated model."""
    return parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "assistant", "generation": generation},
            "spec": {
                "model": {"source": "builtin://sim?profile=h200"},
                "sloClasses": CLASSES,
                "replicas": 2,
            },
        }
    )


class Counting(SimpleSpanProcessor):
    """Knows how many spans have begun and not ended."""

    num_open = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.num_open += 1
        super().on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(span)
        self.num_open -= 1


class Recorded:
    """A tracer, and the spans that it ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.counting = Counting(self._exporter)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(self.counting)
        self.tracer: Tracer = OtelTracer(provider)

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every span that ended."""
        return list(self._exporter.get_finished_spans())

    def of(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> list[ReadableSpan]:
        """The spans of this name and kind."""
        return [span for span in self.spans if span.name == name and span.kind is kind]


@dataclass
class Answer:
    """What the client got."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Chain:
    """A gateway and its replicas."""

    url: str
    core: Core
    replicas: list[Replica]
    session: aiohttp.ClientSession
    at_gateway: Recorded
    at_replicas: Recorded

    async def ask(
        self, *, headers: dict[str, str] | None = None, prompt: str = "Hello there", **body: Any
    ) -> Answer:
        """A chat request to its end."""
        whole = {"model": "assistant", "messages": [{"role": "user", "content": prompt}], **body}
        return await self.post(whole, headers)

    async def post(self, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """Any body."""
        url = f"{self.url}/v1/chat/completions"
        async with self.session.post(url, json=body, headers=headers) as response:
            text = (await response.read()).decode(errors="replace")
            told = {k.lower(): v for k, v in response.headers.items()}
            return Answer(response.status, told, text)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something, 10 s at most."""
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.005)

    async def all_told(self) -> None:
        """Until nothing is open any more, and every span has ended."""
        engines = [r.loaded.engine for r in self.replicas if r.loaded is not None]
        recorded = (self.at_gateway, self.at_replicas)
        await self.until(
            lambda: (
                not self.core.open
                and not any(e.num_running for e in engines)
                and not any(one.counting.num_open for one in recorded)
            )
        )


@contextlib.asynccontextmanager
async def running(
    *,
    num_replicas: int = 1,
    traced: bool = True,
    keys: tuple[Key, ...] | None = None,
    extra: Iterable[tuple[str, int]] = (),
) -> AsyncIterator[Chain]:
    """The whole chain, when the gateway knows every replica as ready."""
    spec = a_spec()
    at_gateway, at_replicas = Recorded(), Recorded()
    async with contextlib.AsyncExitStack() as stack:
        replicas: list[Replica] = []
        addresses = list(extra)
        listeners = []
        for number in range(num_replicas):
            replica = Replica(spec, name=f"r{number}")
            tracer = at_replicas.tracer if traced else NO_TRACER
            sock = bind("127.0.0.1", 0)
            addresses.append(sock.getsockname()[:2])
            listeners.append(Listener(create_replica_app(replica, tracer=tracer), sock))
            engine = EngineClient(service=spec.name, replica=replica.name)
            stack.push_async_callback(engine.stop)
            loaded = load(spec, profile=None, on_phase=lambda *_: None)
            scheduler = make_scheduler(spec, loaded, policy="sloserve")
            engine.start(scheduler, loaded.runner, loaded.tokenizer)
            replica.attach(Served(engine, loaded.tokenizer, loaded.facts, loaded.profile.step))
            replica.ready = True
            replicas.append(replica)
        await stack.enter_async_context(serving(listeners, grace_s=1))
        settings = Settings(poll_s=0.02)
        session = await stack.enter_async_context(new_session(settings))
        core = Core(
            spec,
            ListSource(addresses),
            session=session,
            keys=keys,
            settings=settings,
            tracer=at_gateway.tracer if traced else NO_TRACER,
        )
        public = bind("127.0.0.1", 0)
        work = asyncio.create_task(core.run())
        stack.push_async_callback(_cancelled, work)
        await stack.enter_async_context(
            serving([Listener(create_gateway_app(core), public)], grace_s=1)
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        chain = Chain(url_of(public), core, replicas, client, at_gateway, at_replicas)
        await chain.until(lambda: core.replicas.states()["ready"] == num_replicas)
        yield chain


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def chain() -> Callable[..., contextlib.AbstractAsyncContextManager[Chain]]:
    """`async with chain(num_replicas=2) as it`."""
    return running


@pytest.fixture
def spec() -> Callable[[int], ServiceSpec]:
    """The service, in some generation."""
    return a_spec
