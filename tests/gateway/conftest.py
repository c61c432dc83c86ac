"""A gateway on a free port in front of small true replicas that do what a test tells them."""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sloserve.gateway.app import create_app, create_internal_app
from sloserve.gateway.core import Core, new_session
from sloserve.gateway.keys import Key
from sloserve.gateway.settings import Settings
from sloserve.gateway.sources import ListSource
from sloserve.http import report as reports
from sloserve.http.exporter import CONTENT_TYPE, Exporter
from sloserve.http.serve import Listener, bind, serving, url_of
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.slo import ServiceSpec, parse_service
from sloserve.wire import Frontier, Report, stage_tokens

CLASSES: list[dict[str, Any]] = [
    {"name": "chat", "ttft": {"target": "5s"}, "tpot": "2s"},
    {"name": "strict", "ttft": {"target": "500ms"}, "tpot": "200ms", "onInfeasible": "Decline"},
]


@dataclass(frozen=True)
class Act:
    """What a replica does with one request."""

    tokens: int = 3
    status: int = 200
    decision: str = "admitted"
    reason: str = ""
    ttft_ms: str = ""
    first_s: float = 0.0  # before its headers
    gap_s: float = 0.0
    stages: tuple[int, ...] = ()  # of each token
    choices: int = 1
    die_after: int | None = None  # tokens; 0: not even headers
    break_after: int | None = None  # tokens; then the replica itself tells of an error
    pad: int = 0  # characters more in every event
    after_all: asyncio.Event | None = None  # waits for it before the end mark
    linger_s: float = 0.0  # between the end mark and the end of the body


@dataclass
class Asked:
    """A request as a replica saw it."""

    headers: dict[str, str]
    body: bytes
    cancelled: bool = False
    finished: bool = False


@dataclass
class Clock:
    """Time that passes only when a replica lets it: judgements are exact on any machine."""

    now_s: float = 1000.0
    core: Core | None = None

    def __call__(self) -> float:
        return self.now_s

    async def counted(self, num_tokens: int) -> None:
        """Until the gateway has counted so many tokens of the one request that is open."""
        assert self.core is not None
        while not any(
            e.ticket.judge is not None and e.ticket.judge.num_tokens >= num_tokens
            for e in self.core.open
        ):
            await asyncio.sleep(0.001)


@dataclass
class FakeReplica:
    """Speaks the wire: reports, decides, streams annotated tokens, dies when told to."""

    name: str = "r0"
    service: str = "assistant"
    report: Report = field(init=False)
    acts: deque[Act] = field(default_factory=deque)
    default: Act = field(default_factory=Act)
    asked: list[Asked] = field(default_factory=list)
    silent: bool = False
    tell: bool = True  # piggy-back the report
    model: str = ""  # the only name it answers to beside its `adapters`; empty: any
    adapters: tuple[str, ...] = ()
    address: str = ""
    clock: Clock | None = None

    def __post_init__(self) -> None:
        self.report = Report(
            service=self.service,
            replica=self.name,
            state="ready",
            frontier={c["name"]: Frontier(1, 10_000) for c in CLASSES},
            token_supply_per_s=1000.0,
            zero_load_fixed_s=0.005,
            zero_load_per_token_s=0.0001,
            free_blocks=90,
            total_blocks=100,
        )

    def says(self, **changes: Any) -> None:
        """Change the report."""
        self.report = replace(self.report, **changes)

    def full(self) -> None:
        """Nothing fits any more, and no step beside so many keeps anybody's pace."""
        nothing = {name: Frontier(1, 0) for name in self.report.frontier}
        self.says(frontier=nothing, num_running=50_000)

    def has_room(self) -> None:
        """Everything fits."""
        everything = {name: Frontier(1, 10_000) for name in self.report.frontier}
        self.says(frontier=everything, num_running=0)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/tokenize", self._tokens)
        app.router.add_post("/detokenize", self._tokens)
        app.router.add_get("/tokenizer_info", self._tokens)
        return app

    async def _tokens(self, request: web.Request) -> web.Response:
        """One token per character."""
        asked = Asked({k.lower(): v for k, v in request.headers.items()}, await request.read())
        self.asked.append(asked)
        if self.acts and (act := self.acts.popleft()).status != 200:
            return web.json_response({"error": {"message": "no"}}, status=act.status)
        body = json.loads(asked.body) if asked.body else {}
        if self.model and body.get("model") not in (None, self.model):
            return web.json_response({"error": {"code": "model_not_found"}}, status=404)
        if request.path == "/detokenize":
            return web.json_response({"prompt": "".join(map(chr, body["tokens"]))})
        if request.path == "/tokenize":
            return web.json_response({"tokens": [ord(c) for c in body["prompt"]]})
        return web.json_response({"eos_token": "<|end|>"})

    async def _metrics(self, request: web.Request) -> web.Response:
        while self.silent:
            await asyncio.sleep(0.01)
        exporter = Exporter(REPLICA_EXPORTS)
        reports.export(self.report, exporter)
        text = exporter.render(request.query.getall("name[]"))
        return web.Response(body=text, headers={"content-type": CONTENT_TYPE})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked({k.lower(): v for k, v in request.headers.items()}, await request.read())
        self.asked.append(asked)
        known = (None, self.model, *self.adapters)
        if self.model and json.loads(asked.body).get("model") not in known:
            error = {"message": "no such model", "code": "model_not_found", "param": "model"}
            return web.json_response({"error": error}, status=404)
        act = self.acts.popleft() if self.acts else self.default
        try:
            response = await self._act(request, act, json.loads(asked.body))
            asked.finished = True
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            asked.cancelled = True
            raise

    async def _act(
        self, request: web.Request, act: Act, body: dict[str, Any]
    ) -> web.StreamResponse:
        await self._pass(act.first_s)
        if act.die_after == 0:
            _cut(request)
        headers = {"x-slo-decision": act.decision, "x-sloserve-prompt-tokens": "7"}
        if act.reason:
            headers["x-slo-reason"] = act.reason
        if act.ttft_ms:
            headers["x-slo-ttft-ms"] = act.ttft_ms
        if self.tell:
            headers["x-sloserve-report"] = reports.to_header(self.report)
        if act.status != 200:
            headers["retry-after"] = "7"
            error = {"message": "no", "type": "t", "param": None, "code": act.reason or None}
            return web.json_response({"error": error}, status=act.status, headers=headers)
        if not body.get("stream"):
            return await self._whole(act, headers, chat="messages" in body)
        return await self._stream(request, act, headers, chat="messages" in body)

    async def _pass(self, seconds: float) -> None:
        if self.clock is None:
            await asyncio.sleep(seconds)
        else:
            self.clock.now_s += seconds

    async def _whole(self, act: Act, headers: dict[str, str], *, chat: bool) -> web.Response:
        await self._pass(act.gap_s * act.tokens)
        counts = [act.stages.count(i) for i in range(max(act.stages) + 1)] if act.stages else []
        if counts:
            headers["x-sloserve-stage-tokens"] = stage_tokens([counts])
        text = "".join(f"w{i} " for i in range(act.tokens))
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        )
        answer = {
            "id": "x1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": "assistant",
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **said}],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": act.tokens,
                "total_tokens": 7 + act.tokens,
            },
        }
        return web.json_response(answer, headers=headers)

    async def _stream(
        self, request: web.Request, act: Act, headers: dict[str, str], *, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
        await response.prepare(request)
        marked = request.headers.get("x-sloserve-annotate") == "1"
        for i in range(act.tokens):
            if i == act.die_after:
                await asyncio.sleep(0.02)
                _cut(request)
            if i == act.break_after:
                await response.write(
                    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}\n\n'
                    b'data: {"error":{"message":"broke"}}\n\ndata: [DONE]\n\n'
                )
                return response
            for choice in range(act.choices):
                stage = act.stages[i] if act.stages else 0
                mark = f": n=1 stage={stage}\n" if marked else ""
                event = _chunk(
                    f"w{i} " + "x" * act.pad, choice, chat=chat, last=i == act.tokens - 1
                )
                await response.write(f"{mark}data: {event}\n\n".encode())
            if i < act.tokens - 1:
                if self.clock is not None:
                    await self.clock.counted((i + 1) * act.choices)
                await self._pass(act.gap_s)
        if act.after_all is not None:
            await act.after_all.wait()
        await response.write(b"data: [DONE]\n\n")
        await asyncio.sleep(act.linger_s)
        return response


def _cut(request: web.Request) -> None:
    """The process is gone: its connections are reset."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError("died")


def _chunk(text: str, choice: int, *, chat: bool, last: bool) -> str:
    said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
    part = {"index": choice, **said, "logprobs": None, "finish_reason": "stop" if last else None}
    return json.dumps(
        {
            "id": "x1",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1,
            "model": "assistant",
            "choices": [part],
        }
    )


@dataclass
class Answer:
    """What the client got."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """A whole answer."""
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        """A stream's events, the end mark as it is."""
        parts = [e.removeprefix("data: ") for e in self.text.split("\n\n") if e]
        return [p if p == "[DONE]" else json.loads(p) for p in parts]


@dataclass
class World:
    """A running gateway and its replicas."""

    core: Core
    url: str
    internal_url: str
    replicas: list[FakeReplica]
    session: aiohttp.ClientSession
    listed: list[tuple[str, int]]
    """What names the replicas: a test may change it."""

    def unlist(self, replica: FakeReplica) -> None:
        """The replica is gone from the list."""
        host, _, port = replica.address.rpartition(":")
        self.listed.remove((host, int(port)))

    async def ask(self, *, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        """A chat request to its end."""
        whole = {"model": "assistant", "messages": [{"role": "user", "content": "Hello"}], **body}
        return await self.post("/v1/chat/completions", json.dumps(whole).encode(), headers)

    async def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
        """Any body."""
        given = {"content-type": "application/json", **(headers or {})}
        async with self.session.post(self.url + path, data=body, headers=given) as response:
            text = (await response.read()).decode()
            told = {k.lower(): v for k, v in response.headers.items()}
            return Answer(response.status, told, text)

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        """From the public port."""
        async with self.session.get(self.url + path, headers=headers) as response:
            told = {k.lower(): v for k, v in response.headers.items()}
            return Answer(response.status, told, (await response.read()).decode())

    async def internal(self, path: str) -> Answer:
        """From the internal port."""
        async with self.session.get(self.internal_url + path) as response:
            told = {k.lower(): v for k, v in response.headers.items()}
            return Answer(response.status, told, (await response.read()).decode())

    def count(self, name: str, *labels: str) -> float:
        """A counter of the service; `labels` after service and model."""
        return self.core.ledger.exporter.value(name, "assistant", "assistant", *labels)

    def judged(self, slo_class: str = "chat") -> tuple[int, int, int, int]:
        """(eligible, ttft kept, tpot kept, all kept)."""
        tally = self.core.ledger.since_start(slo_class)
        kept = tally.attained
        return tally.eligible, kept["ttft"], kept["tpot"], kept["all"]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something, a minute at most."""
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.005)

    def hears(self, *states: str) -> bool:
        """Whether the replicas' states are known to be these."""
        return [u.state(self.core.clock()) for u in self.core.replicas.known.values()] == [*states]


def a_spec(
    *, classes: Iterable[dict[str, Any]] = CLASSES, replicas: int = 2, **gateway: Any
) -> ServiceSpec:
    """A service named `assistant`."""
    return parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "assistant"},
            "spec": {
                "model": {"source": "builtin://sim", "maxModelLen": 4096},
                "sloClasses": list(classes),
                "replicas": replicas,
                "gateway": gateway,
            },
        }
    )


@contextlib.asynccontextmanager
async def running(
    *replicas: FakeReplica,
    spec: ServiceSpec | None = None,
    keys: tuple[Key, ...] | None = None,
    settings: Settings | None = None,
    extra: Iterable[tuple[str, int]] = (),
    tls: tuple[str, str] | None = None,
    virtual: bool = False,
) -> AsyncIterator[World]:
    """A gateway in front of these replicas, when it has heard of all that speak."""
    settings = settings or Settings(poll_s=0.02)
    clock = Clock() if virtual else None
    async with contextlib.AsyncExitStack() as stack:
        addresses = list(extra)
        for replica in replicas:
            replica.clock = clock
            runner = web.AppRunner(replica.app(), handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            replica.address = f"{host}:{port}"
            addresses.append((host, port))
        session = await stack.enter_async_context(new_session(settings))
        core = Core(
            spec or a_spec(),
            ListSource(addresses),
            session=session,
            keys=keys,
            settings=settings,
            clock=clock or time.monotonic,
        )
        if clock is not None:
            clock.core = core
        public, inside = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
        listeners = [
            Listener(create_app(core), public, *(tls or ())),
            Listener(create_internal_app(core), inside),
        ]
        work = asyncio.create_task(core.run())
        stack.push_async_callback(_cancelled, work)
        await stack.enter_async_context(serving(listeners, grace_s=1))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        world = World(
            core,
            url_of(public, tls=tls is not None),
            url_of(inside),
            list(replicas),
            client,
            addresses,
        )
        speaking = sum(r.service == "assistant" and not r.silent for r in replicas)
        known = core.replicas.known
        await world.until(lambda: sum(u.report is not None for u in known.values()) >= speaking)
        yield world


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def gateway() -> Callable[..., contextlib.AbstractAsyncContextManager[World]]:
    """`async with gateway(replica, ...) as world`."""
    return running


@pytest.fixture
def spec() -> Callable[..., ServiceSpec]:
    """Builds a service spec."""
    return a_spec


@pytest.fixture
def replica() -> type[FakeReplica]:
    """Builds a replica."""
    return FakeReplica


@pytest.fixture
def act() -> type[Act]:
    """Builds what a replica does."""
    return Act
