"""A replica's HTTP server on a free port, with the real engine over a runner that shouts."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest

from sloserve.engine.client import EngineClient
from sloserve.engine.runner import Logprobs, ModelFacts, Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.sim import EOS_ID, sim_facts, soonest_end
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.frontend.app import create_app
from sloserve.frontend.grammars import make_grammars
from sloserve.frontend.replica import Replica, Served
from sloserve.http import serve
from sloserve.perf import OnlineCorrection, StepModel
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import Scheduler
from sloserve.slo.manifest import parse_service
from sloserve.slo.service import ServiceSpec
from sloserve.tools.formats import HERMES, ToolFormat

T = TypeVar("T")

STEP_MODEL = StepModel(w=0.001, a0=1e-6, c1=0.0, a1=2e-6, b=1e-9, d=1e-9)


class Skipping:
    """The real clock, and a test may skip some time."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def now_s(self) -> float:
        return time.monotonic() + self._skipped_s

    def sleep_until(self, at_s: float) -> None:
        time.sleep(max(0.0, at_s - self.now_s()))

    def skip(self, seconds: float) -> None:
        """So much later."""
        self._skipped_s += seconds


class Capitals:
    """
    A runner that answers every prompt with its own text in capitals, over and over.

    A test turns `hold` (steps wait), `breaks` (steps fail), `step_s` and `says`. A grammar is
    followed on the shortest way to its end.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.asked: list[SamplingParams] = []
        self.rows: list[StepRow] = []
        """The first one of each answer."""
        self.go = threading.Event()
        self.go.set()
        self.breaks: Callable[[StepRow], bool] = lambda row: False
        self.step_s = 0.0
        self.says: str | None = None
        """Answer this instead, and end."""

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        self.go.wait(60)
        time.sleep(self.step_s)
        return [self._row(row) for row in rows]

    def _row(self, row: StepRow) -> Sampled:
        if self.breaks(row):
            raise RuntimeError("the device is on fire")
        prompt: tuple[Logprobs, ...] = ()
        if row.sampling.prompt_logprobs is not None and row.start < row.num_prompt:
            prompt = tuple(Logprobs(t, -1.0) for t in row.tokens[row.start :][: row.count])
        if not row.sample:
            return Sampled(prompt=prompt)
        num_output = len(row.tokens) - row.num_prompt
        if num_output == 0:
            self.asked.append(row.sampling)
            self.rows.append(row)
        token_id = ord(chr(row.tokens[num_output % row.num_prompt] % 128).upper())
        if self.says is not None:
            said = ByteTokenizer().encode(self.says)
            token_id = said[num_output] if num_output < len(said) else EOS_ID
        if row.matcher is not None:
            token_id = soonest_end(row.matcher.mask())
        count = row.sampling.logprobs
        logprobs = None
        if count is not None:
            logprobs = Logprobs(token_id, -0.5, ((token_id, -0.5),) * bool(count))
        return Sampled(token_id, logprobs, prompt)

    def forget(self, request_id: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Running:
    """A server in a thread; `url` ends without a slash."""

    url: str
    replica: Replica
    runner: Capitals
    scheduler: Scheduler
    loop: asyncio.AbstractEventLoop
    clock: Skipping = field(default_factory=Skipping)
    """The engine's."""
    tool_format: ToolFormat | None = HERMES
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def on_loop(self, do: Callable[[], T]) -> T:
        """Run something on the server's own loop."""

        async def run() -> T:
            return do()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.client.post(path, **kwargs)

    def metric(self, line: str) -> float:
        """The value of the sample whose line starts with `line`; 0 when it is not there."""
        text = self.client.get("/metrics").text
        found = [x.rpartition(" ")[2] for x in text.splitlines() if x.startswith(line)]
        return float(found[0]) if found else 0.0

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
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
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def _unready(spec: ServiceSpec) -> Iterator[Running]:
    sock = serve.bind("127.0.0.1", 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # a slow reader is felt soon
    replica = Replica(spec, name="r0")
    runner = Capitals(sim_facts(max_model_len=512, block_size=4, num_blocks=512))
    scheduler = _scheduler(spec, runner.facts)
    loops: list[asyncio.AbstractEventLoop] = []
    up = threading.Event()

    async def main(stop: asyncio.Event) -> None:
        loops.append(asyncio.get_running_loop())
        async with serve.serving([serve.Listener(create_app(replica), sock)], grace_s=1):
            up.set()
            await stop.wait()

    url = serve.url_of(sock)
    with _in_a_thread(main):
        assert up.wait(60)
        running = Running(url, replica, runner, scheduler, loops[0])
        with running.client:
            yield running


@contextlib.contextmanager
def _ready(server: Running) -> Iterator[Running]:
    client = EngineClient(service="assistant", replica="r0", clock=server.clock)
    tokenizer = ByteTokenizer()

    def attach() -> None:
        client.start(server.scheduler, server.runner, tokenizer)
        facts = server.runner.facts
        grammars = make_grammars(tokenizer, facts)
        server.replica.attach(
            Served(
                client,
                tokenizer,
                facts,
                STEP_MODEL,
                grammars=grammars,
                tool_format=server.tool_format,
            )
        )
        server.replica.ready = True

    server.on_loop(attach)
    yield server
    server.runner.go.set()
    asyncio.run_coroutine_threadsafe(client.stop(), server.loop).result(10)


@pytest.fixture
def unready(spec: ServiceSpec) -> Iterator[Running]:
    """A server whose model is not loaded."""
    with _unready(spec) as server:
        yield server


@pytest.fixture
def running(unready: Running) -> Iterator[Running]:
    """A server that is ready, for one test alone."""
    with _ready(unready) as server:
        yield server


@pytest.fixture
def reasoning(running: Running) -> Running:
    """A server with a class `reason`, whose answers begin with thinking."""
    manifest = _manifest()
    stages = [{"name": "thinking", "tpot": "5s", "until": "</think>"}]
    stages.append({"name": "answer", "tpot": "5s"})
    slow = {"name": "reason", "ttft": {"target": "10s"}, "stages": stages}
    manifest["spec"]["sloClasses"].append(slow)
    running.on_loop(lambda: running.replica.apply(parse_service(manifest)))
    return running


@pytest.fixture
def ready() -> Callable[[Running], contextlib.AbstractContextManager[Running]]:
    """Loads the model of a server that was not ready."""
    return _ready


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """A server that is ready, for the tests of a module that leave nothing behind."""
    with _unready(parse_service(_manifest())) as server, _ready(server):
        yield server


def _scheduler(spec: ServiceSpec, facts: ModelFacts) -> Scheduler:
    return Scheduler(
        make_policy("sloserve"),
        STEP_MODEL,
        OnlineCorrection(),
        Limits(block_size=facts.block_size, num_blocks=facts.num_blocks),
        new_law=LengthLaw,
        classes=spec.classes,
        max_model_len=facts.max_model_len,
    )
