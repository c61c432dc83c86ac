"""An engine over a simulated model on virtual time, alone or behind its client."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from sloserve.engine.client import EngineClient
from sloserve.engine.clock import VirtualClock
from sloserve.engine.events import Chunk, Decided, Event, Generate
from sloserve.engine.loop import Engine
from sloserve.engine.runner import ModelFacts, Runner, Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.sim import SimRunner, sim_facts
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.perf import StepModel
from sloserve.perf.correction import OnlineCorrection
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import Scheduler
from sloserve.slo import OnInfeasible, Promise, SloClass, Stage, Ttft

MODEL = StepModel(w=0.010, a0=0.0, c1=0.002, a1=0.0001, b=0.0, d=0.0)
FACTS = sim_facts(block_size=4, num_blocks=256, max_model_len=512)
CHAT = SloClass("chat", ttft=Ttft(target_s=1.0), stages=(Stage("decode", 0.1),))


class Script:
    """A runner that says what it is told: the tokens of each answer, in order of arrival."""

    def __init__(self, *answers: Sequence[int], facts: ModelFacts = FACTS) -> None:
        self.facts = facts
        self.num_steps = 0
        self.fails: Callable[[int], bool] = lambda step: False
        self._answers = list(answers)
        self._of: dict[int, Sequence[int]] = {}

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        self.num_steps += 1
        if self.fails(self.num_steps):
            raise RuntimeError("the device is on fire")
        for row in rows:
            if row.request_id not in self._of:
                self._of[row.request_id] = self._answers.pop(0)
        return [
            Sampled(self._of[row.request_id][len(row.tokens) - row.num_prompt])
            if row.sample
            else Sampled()
            for row in rows
        ]

    def forget(self, request_id: int) -> None:
        self._of.pop(request_id, None)

    def close(self) -> None:
        pass


def new_scheduler(policy: str = "sloserve", facts: ModelFacts = FACTS) -> Scheduler:
    return Scheduler(
        make_policy(policy),
        MODEL,
        OnlineCorrection(),
        Limits(
            block_size=facts.block_size,
            num_blocks=facts.num_blocks,
            max_running=16,
            max_batch_tokens=128,
        ),
        new_law=LengthLaw,
        classes=[CHAT],
        max_model_len=facts.max_model_len,
    )


_keys = itertools.count()


def new_ask(
    prompt: str | Sequence[int] = "Hello, engine.",
    *,
    arrival_s: float = 0.0,
    ttft_s: float = 1e6,
    tpot_s: float = 1e6,
    stages: tuple[Stage, ...] = (),
    on_infeasible: OnInfeasible = OnInfeasible.DEGRADE,
    last_hop: bool = True,
    **sampling: object,
) -> Generate:
    ids = ByteTokenizer().encode(prompt) if isinstance(prompt, str) else list(prompt)
    return Generate(
        key=f"r{next(_keys)}",
        prompt=ids,
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
        promise=Promise(
            slo_class="chat",
            ttft_s=ttft_s,
            stages=stages or (Stage("decode", tpot_s),),
            on_infeasible=on_infeasible,
        ),
        arrival_s=arrival_s,
        last_hop=last_hop,
    )


@dataclass(slots=True)
class Bench:
    """An engine turned by hand."""

    engine: Engine
    clock: VirtualClock
    overlap: bool
    events: list[tuple[str, Event]] = field(default_factory=list)

    def of(self, ask: Generate) -> list[Event]:
        return [event for key, event in self.events if key == ask.key]

    def text(self, ask: Generate) -> str:
        return "".join(event.text for event in self.of(ask) if isinstance(event, Chunk))

    def last(self, ask: Generate) -> Chunk:
        event = self.of(ask)[-1]
        assert isinstance(event, Chunk)
        return event

    def decided(self, ask: Generate) -> Decided:
        event = self.of(ask)[0]
        assert isinstance(event, Decided)
        return event

    def run(self, max_turns: int = 2000) -> None:
        for _ in range(max_turns):
            ran = self.engine.begin()
            if ran:
                if self.overlap:
                    self.engine.foresee()
                self.engine.finish()
            self.engine.scheduler.check_integrity()
            if not self.engine.has_work:
                return
            if not ran:
                self.clock.sleep_until(self.clock.now_s() + 0.002)
        raise AssertionError(f"not done after {max_turns} turns")


@pytest.fixture
def an_ask() -> Callable[..., Generate]:
    return new_ask


@pytest.fixture
def script() -> type[Script]:
    return Script


@pytest.fixture
def a_bench() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(
        runner: Runner | None = None,
        *,
        policy: str = "sloserve",
        overlap: bool = False,
        facts: ModelFacts = FACTS,
    ) -> Bench:
        clock = VirtualClock()
        events: list[tuple[str, Event]] = []
        engine = Engine(
            new_scheduler(policy, facts),
            runner or SimRunner(MODEL, facts, clock),
            ByteTokenizer(),
            clock=clock,
            emit=events.extend,
            overlap=overlap,
        )
        benches.append(Bench(engine, clock, overlap, events))
        return benches[-1]

    yield build
    for bench in benches:
        bench.engine.close()


Serving = Callable[..., contextlib.AbstractAsyncContextManager[EngineClient]]


@pytest.fixture
def serving() -> Serving:
    """A client with a running engine; virtual time unless a runner is given."""

    @contextlib.asynccontextmanager
    async def build(
        runner: Runner | None = None,
        *,
        policy: str = "sloserve",
        max_buffered_events: int = 2048,
        overlap: bool | None = None,
        wrap: Callable[[Runner], Runner] = lambda runner: runner,
    ) -> AsyncIterator[EngineClient]:
        clock = VirtualClock()
        client = EngineClient(
            service="svc", replica="one", clock=clock, max_buffered_events=max_buffered_events
        )
        client.start(
            new_scheduler(policy),
            wrap(runner or SimRunner(MODEL, FACTS, clock)),
            ByteTokenizer(),
            overlap=overlap,
        )
        try:
            yield client
        finally:
            await asyncio.wait_for(client.stop(), 60)

    return build
