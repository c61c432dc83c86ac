"""A replica's HTTP server on a free port, with a small true engine behind it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest

from sloserve.engine.events import Broken, Chunk, Decided, Event, Generate
from sloserve.engine.runner import Logprobs
from sloserve.engine.sim import sim_facts
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.errors import Reason
from sloserve.frontend.app import create_app
from sloserve.frontend.replica import Replica, Served
from sloserve.http import serve
from sloserve.perf import StepModel
from sloserve.slo import Decision, SloClass
from sloserve.slo.manifest import parse_service
from sloserve.slo.service import ServiceSpec
from sloserve.wire import Frontier, Report

T = TypeVar("T")

STEP_MODEL = StepModel(w=0.001, a0=1e-6, c1=0.0, a1=2e-6, b=1e-9, d=1e-9)


class ScriptedEngine:
    """
    An engine that answers every prompt with its own text in capitals, a token at a time.

    `decision`, `breaks_after` and `hold` are what a test turns.
    """

    def __init__(self) -> None:
        self.tokenizer = ByteTokenizer()
        self.asked: list[Generate] = []
        self.open: set[str] = set()
        self.classes: tuple[SloClass, ...] = ()
        self.decided = Decided(Decision.ADMITTED)
        self.breaks_after: int | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.draining = False
        self.is_stalled = False
        self.way_out_s = 0.0

    async def generate(self, ask: Generate) -> AsyncGenerator[Event, None]:
        """Capitals of the prompt, over and over."""
        self.asked.append(ask)
        self.open.add(ask.key)
        try:
            yield self.decided
            if self.decided.decision is Decision.DECLINED:
                return
            text = self.tokenizer.decode(ask.prompt).upper() or "-"
            for n in range(1, ask.sampling.max_tokens + 1):
                await asyncio.sleep(0)
                while not self.hold.is_set():
                    await asyncio.sleep(0.005)
                if self.breaks_after is not None and n > self.breaks_after:
                    yield Broken(Reason.NONE, "the step failed")
                    return
                yield self._chunk(ask, n, text[(n - 1) % len(text)])
        finally:
            self.open.discard(ask.key)

    def _chunk(self, ask: Generate, n: int, text: str) -> Chunk:
        last = n == ask.sampling.max_tokens
        token_id = ord(text[0]) % 256
        wants_prompt = n == 1 and ask.sampling.prompt_logprobs is not None
        return Chunk(
            text=text,
            token_ids=(token_id,),
            stage=0,
            emitted_s=time.monotonic(),
            num_output=n,
            num_cached=min(2, len(ask.prompt)),
            logprobs=()
            if ask.sampling.logprobs is None
            else (Logprobs(token_id, -0.5, ((token_id, -0.5),) * bool(ask.sampling.logprobs)),),
            prompt_logprobs=tuple(Logprobs(t, -1.0) for t in ask.prompt) if wants_prompt else (),
            finish_reason="length" if last else None,
        )

    def report(self) -> Report:
        return Report(
            service="",
            replica="",
            state="",
            frontier={c.name: Frontier(1, 4096) for c in self.classes},
            num_running=len(self.open),
        )

    def drain(self) -> None:
        self.draining = True

    def set_classes(self, classes: Sequence[SloClass]) -> None:
        self.classes = tuple(classes)

    def set_way_out(self, way_out_s: float) -> None:
        self.way_out_s = way_out_s

    def steps(self) -> list[dict[str, object]]:
        return []

    def stalled(self) -> bool:
        return self.is_stalled


@dataclass
class Running:
    """A server in a thread; `url` ends without a slash."""

    url: str
    replica: Replica
    engine: ScriptedEngine
    loop: asyncio.AbstractEventLoop
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=10)

    def on_loop(self, do: Callable[[], T]) -> T:
        """Run something on the server's own loop."""

        async def run() -> T:
            return do()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.client.post(path, **kwargs)

    def metric(self, line: str) -> float:
        """The value of the sample whose line starts with `line`; 0 when it is not there."""
        text = self.client.get("/metrics").text
        found = [x.rpartition(" ")[2] for x in text.splitlines() if x.startswith(line)]
        return float(found[0]) if found else 0.0

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
        """Poll until it holds."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, "it never happened"
            time.sleep(0.005)


def _manifest() -> dict[str, Any]:
    return {
        "apiVersion": "sloserve.io/v1alpha1",
        "kind": "SLOService",
        "metadata": {"name": "assistant", "generation": 3},
        "spec": {
            "model": {"source": "builtin://sim", "servedName": "sim"},
            "sloClasses": [
                {"name": "chat", "ttft": {"slowdown": 5, "floor": "10s"}, "tpot": "5s"},
                {
                    "name": "code",
                    "ttft": {"target": "500ms"},
                    "tpot": "50ms",
                    "onInfeasible": "Decline",
                    "tightest": {"ttft": "200ms", "tpot": "20ms"},
                },
                {
                    "name": "agent",
                    "ttft": {"target": "2s"},
                    "stages": [
                        {"name": "loop", "tpot": "20ms"},
                        {"name": "final", "tpot": "80ms"},
                    ],
                },
            ],
            "defaultClass": "chat",
        },
    }


@pytest.fixture
def spec() -> ServiceSpec:
    """A service with three classes."""
    return parse_service(_manifest())


@contextlib.contextmanager
def _in_a_thread(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> Iterator[None]:
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def run() -> None:
        async def whole() -> None:
            stop = asyncio.Event()
            started.append((asyncio.get_running_loop(), stop))
            await main(stop)

        asyncio.run(whole())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        loop, stop = started[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def unready(spec: ServiceSpec) -> Iterator[Running]:
    """A server whose model is not loaded."""
    sock = serve.bind("127.0.0.1", 0)
    replica = Replica(spec, name="r0")
    loops: list[asyncio.AbstractEventLoop] = []
    up = threading.Event()

    async def main(stop: asyncio.Event) -> None:
        loops.append(asyncio.get_running_loop())
        async with serve.serving([serve.Listener(create_app(replica), sock)], grace_s=1):
            up.set()
            await stop.wait()

    url = serve.url_of(sock)
    with _in_a_thread(main):
        assert up.wait(10)
        running = Running(url, replica, ScriptedEngine(), loops[0])
        with running.client:
            yield running


@pytest.fixture
def running(unready: Running) -> Running:
    """A server that is ready."""
    engine = unready.engine
    served = Served(engine, engine.tokenizer, sim_facts(max_model_len=512), STEP_MODEL)

    def attach() -> None:
        unready.replica.attach(served)
        unready.replica.ready = True

    unready.on_loop(attach)
    return unready
