"""Planning beside the running step: the same answers, told sooner, whatever happens meanwhile."""

import asyncio
import random
import threading
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from sloserve.engine.client import EngineClient
from sloserve.engine.events import Broken, Chunk, Decided, Event, Generate
from sloserve.engine.runner import ModelFacts, Sampled, StepRow
from sloserve.errors import Reason
from sloserve.slo import Decision

EOS = 256


class Echo:
    """
    Answers with a letter that follows from the prompt and the tokens so far, whatever else is in
    the batch; some end early. Notes what was asked of it while it was busy.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.busy = False
        self.touched = False

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        self.busy = True
        sampled = [self.sample(row) for row in rows]
        self.busy = False
        return sampled

    def sample(self, row: StepRow) -> Sampled:
        if not row.sample:
            return Sampled()
        drawn = random.Random(repr(list(row.tokens))).randrange(40)
        return Sampled(EOS if drawn == 0 else 65 + drawn % 26)

    def forget(self, request_id: int) -> None:
        self.touched = self.touched or self.busy

    def close(self) -> None:
        self.touched = self.touched or self.busy


class Held(Echo):
    """Every step waits for a permit: the test says when it ends."""

    def __init__(self, facts: ModelFacts) -> None:
        super().__init__(facts)
        self.permits = threading.Semaphore(0)
        self.num_begun = 0
        self.fails_at = 0

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        self.busy = True
        self.num_begun += 1
        assert self.permits.acquire(timeout=20)
        if self.num_begun == self.fails_at:
            self.busy = False
            raise RuntimeError("the device is on fire")
        return super().step(rows)


class Watched:
    """A policy that says so when it has planned ahead."""

    def __init__(self, policy: Any, planned: threading.Semaphore, *, ahead: bool = False) -> None:
        self.name = policy.name
        self.frontier = policy.frontier
        self._policy = policy
        self._planned = planned
        self._ahead = ahead

    def plan(self, snapshot: Any) -> Any:
        plan = self._policy.plan(snapshot)
        if self._ahead:
            self._ahead = False
            self._planned.release()
        return plan

    def fork(self) -> "Watched":
        return Watched(self._policy.fork(), self._planned, ahead=True)


class Patient(Echo):
    """Ends no step before the one after it is planned as well (by a policy that is `Watched`)."""

    def __init__(self, facts: ModelFacts) -> None:
        super().__init__(facts)
        self.planned = threading.Semaphore(0)

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        assert self.planned.acquire(timeout=20)
        while self.planned.acquire(blocking=False):  # planned again for who came
            pass
        return super().step(rows)


class Lost:
    """A policy that plans the present, and can't look ahead."""

    def __init__(self, policy: Any, asked: threading.Semaphore) -> None:
        self.name, self.plan, self.frontier = policy.name, policy.plan, policy.frontier
        self._asked = asked

    def fork(self) -> Any:
        self._asked.release()
        raise RuntimeError("the planner lost its mind")


async def read(client: EngineClient, ask: Generate) -> list[Event]:
    async with aclosing(client.generate(ask)) as events:
        return [event async for event in events]


async def until(holds: Any) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


def asks(an_ask: Any, num: int) -> list[Generate]:
    return [an_ask("x" * (5 + 17 * i % 90), max_tokens=5 + i % 30) for i in range(num)]


@pytest.fixture
def facts(a_bench: Any) -> ModelFacts:
    found: ModelFacts = a_bench().engine.facts
    return found


def test_the_answers_are_the_same_planned_ahead_or_not(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    async def answers(overlap: bool) -> list[str]:
        runner = Patient(facts) if overlap else Echo(facts)
        async with serving(runner, overlap=overlap) as client:
            if isinstance(runner, Patient):
                client.scheduler.policy = Watched(client.scheduler.policy, runner.planned)
            given = await asyncio.gather(*(read(client, ask) for ask in asks(an_ask, 40)))
            client.scheduler.check_integrity()
            assert (client.scheduler.counters.num_foreseen > 0) == overlap
            return [text(events) for events in given]

    between, ahead = asyncio.run(answers(False)), asyncio.run(answers(True))
    assert ahead == between
    assert len({len(answer) for answer in ahead}) > 5


def test_a_turn_planned_ahead_takes_no_plan_of_its_own(
    a_bench: Any, an_ask: Any, facts: ModelFacts
) -> None:
    bench = a_bench(overlap=True)
    ask = an_ask(max_tokens=20)
    bench.engine.add(ask)
    bench.run()
    assert bench.text(ask) == "This is a simulated "
    counters = bench.engine.scheduler.counters
    assert counters.num_foreseen == counters.num_steps - 1


def test_planning_goes_on_while_a_step_is_in_flight(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    runner = Patient(facts)

    async def main() -> None:
        async with serving(runner, overlap=True) as client:
            client.scheduler.policy = Watched(client.scheduler.policy, runner.planned)
            events = await read(client, an_ask(max_tokens=5, ignore_eos=True))
            assert len(events) == 6
            assert client.scheduler.counters.num_foreseen == 4

    asyncio.run(main())


def test_who_could_be_served_elsewhere_is_declined_while_the_step_runs(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    runner = Held(facts)

    async def main() -> None:
        async with serving(runner, overlap=True) as client:
            first = asyncio.create_task(read(client, an_ask(max_tokens=3, ignore_eos=True)))
            await until(lambda: runner.num_begun == 1)
            hopeless = an_ask("x" * 400, ttft_s=0.005, last_hop=False)
            (declined,) = await read(client, hopeless)
            assert isinstance(declined, Decided)
            assert declined.decision is Decision.DECLINED
            assert declined.reason is Reason.TTFT
            assert runner.num_begun == 1
            for _ in range(3):
                runner.permits.release()
            assert len(await first) == 4

    asyncio.run(main())
    assert not runner.touched


def test_hanging_up_in_the_middle_of_a_step_touches_nothing_that_runs(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    runner = Held(facts)

    async def main() -> None:
        async with serving(runner, overlap=True) as client:
            scheduler = client.scheduler
            stays = asyncio.create_task(read(client, an_ask(max_tokens=3, ignore_eos=True)))
            leaves = asyncio.create_task(read(client, an_ask("x" * 50, max_tokens=9)))
            await until(lambda: len(scheduler.requests) == 2 and runner.num_begun == 1)
            runner.permits.release()
            await until(lambda: runner.num_begun == 2)
            leaves.cancel()
            await until(lambda: len(scheduler.requests) == 1)
            held = scheduler.limits.num_blocks - scheduler.blocks.num_free
            assert held > 13  # what the step that runs writes to
            scheduler.check_integrity()
            for _ in range(3):
                runner.permits.release()
            assert len(await stays) == 4
            await until(lambda: scheduler.blocks.num_free == scheduler.limits.num_blocks)

    asyncio.run(main())
    assert not runner.touched


def test_a_step_that_breaks_beside_the_loop_ends_its_requests_only(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    runner = Held(facts)
    runner.fails_at = 2

    async def main() -> None:
        async with serving(runner, overlap=True) as client:
            for _ in range(9):
                runner.permits.release()
            events = await read(client, an_ask(max_tokens=5, ignore_eos=True))
            assert isinstance(events[-1], Broken)
            assert "on fire" in events[-1].message
            events = await read(client, an_ask(max_tokens=5, ignore_eos=True))
            assert len(events) == 6
            client.scheduler.check_integrity()

    asyncio.run(main())


def test_a_planner_that_breaks_beside_a_step_ends_every_request_and_the_loop_goes_on(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    runner = Held(facts)

    async def main() -> None:
        async with serving(runner, overlap=True) as client:
            scheduler = client.scheduler
            policy = scheduler.policy
            scheduler.policy = Lost(policy, runner.permits)
            events = await read(client, an_ask(max_tokens=5, ignore_eos=True))
            assert isinstance(events[-1], Broken)
            scheduler.policy = policy
            for _ in range(5):
                runner.permits.release()
            events = await read(client, an_ask(max_tokens=5, ignore_eos=True))
            assert len(events) == 6
            scheduler.check_integrity()

    asyncio.run(main())


def test_stopping_waits_for_the_step_that_runs(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    runner = Held(facts)

    async def main() -> None:
        async with serving(runner, overlap=True) as client:
            ask = an_ask(max_tokens=9, ignore_eos=True)
            reader = asyncio.create_task(read(client, ask))
            await until(lambda: runner.num_begun == 1)
            stopping = asyncio.create_task(client.stop())
            await asyncio.sleep(0)
            runner.permits.release()
            await stopping
            assert isinstance((await reader)[-1], Broken)

    asyncio.run(main())
    assert runner.num_begun == 1
    assert not runner.touched


def test_a_runner_says_whether_there_is_room_beside_its_steps(
    serving: Any, an_ask: Any, facts: ModelFacts
) -> None:
    async def num_foreseen(runner: Echo) -> int:
        async with serving(runner) as client:
            if isinstance(runner, Patient):
                client.scheduler.policy = Watched(client.scheduler.policy, runner.planned)
            await read(client, an_ask(max_tokens=9, ignore_eos=True))
            return int(client.scheduler.counters.num_foreseen)

    assert asyncio.run(num_foreseen(Echo(facts))) == 0
    assert asyncio.run(num_foreseen(Patient(replace(facts, steps_aside=True)))) == 8


@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_conserved_whatever_comes_while_steps_run(
    serving: Any, an_ask: Any, facts: ModelFacts, seed: int
) -> None:
    chance = random.Random(seed)

    async def one(client: EngineClient, ask: Generate, patience: int) -> None:
        async with aclosing(client.generate(ask)) as events:
            async for _ in events:
                patience -= 1
                if patience < 0:
                    return

    async def main() -> None:
        runner = Patient(facts)
        async with serving(runner, overlap=True) as client:
            client.scheduler.policy = Watched(client.scheduler.policy, runner.planned)
            readers = []
            for ask in asks(an_ask, 60):
                ask = replace(ask, last_hop=chance.random() < 0.7)
                readers.append(asyncio.create_task(one(client, ask, chance.choice([1, 7, 99]))))
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
            await asyncio.gather(*readers)
            scheduler = client.scheduler
            await until(lambda: not scheduler.requests)
            await until(lambda: scheduler.blocks.num_free == scheduler.limits.num_blocks)
            scheduler.check_integrity()
            assert scheduler.counters.num_policy_errors == 0

    asyncio.run(main())
