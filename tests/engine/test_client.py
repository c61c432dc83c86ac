"""The client: answers, hanging up, draining, slow readers, and an engine that breaks."""

import asyncio
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from sloserve.engine.client import EngineClient
from sloserve.engine.events import Broken, Chunk, Decided, Event, Generate
from sloserve.engine.reporter import Reporter
from sloserve.errors import BadInput, Failed, Reason, Unavailable
from sloserve.slo import Decision, OnInfeasible, SloClass, Stage, Ttft


async def read(client: EngineClient, ask: Generate) -> list[Event]:
    async with aclosing(client.generate(ask)) as events:
        return [event async for event in events]


async def until(holds: Any, *, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.001)


def free_blocks(client: EngineClient) -> int:
    assert client.scheduler is not None
    return client.scheduler.blocks.num_free


def test_an_answer_is_a_decision_and_then_its_tokens(serving: Any, an_ask: Any) -> None:
    async def main() -> None:
        async with serving() as client:
            events = await read(client, an_ask(max_tokens=12))
            assert events[0] == Decided(Decision.ADMITTED)
            chunks = [event for event in events if isinstance(event, Chunk)]
            assert "".join(chunk.text for chunk in chunks) == "This is a si"
            assert [chunk.num_output for chunk in chunks] == list(range(1, 13))
            assert chunks[-1].finish_reason == "length"

    asyncio.run(main())


def test_many_answers_run_side_by_side(serving: Any, an_ask: Any) -> None:
    async def main() -> None:
        async with serving() as client:
            asks = [an_ask(max_tokens=5 + i) for i in range(40)]
            answers = await asyncio.gather(*(read(client, ask) for ask in asks))
            assert [len(events) for events in answers] == [6 + i for i in range(40)]
            assert client.num_running == 0
            await until(lambda: free_blocks(client) == 256)

    asyncio.run(main())


class Gated:
    """A runner that waits for a permit before every step: the test decides when time passes."""

    def __init__(self, runner: Any) -> None:
        self.facts = runner.facts
        self.permits = threading.Semaphore(0)
        self.step = self._step
        self._runner = runner

    def _step(self, rows: Any) -> Any:
        assert self.permits.acquire(timeout=20)
        return self._runner.step(rows)

    def forget(self, request_id: int) -> None:
        self._runner.forget(request_id)

    def close(self) -> None:
        self._runner.close()


def test_hanging_up_frees_the_blocks_within_one_step(
    serving: Any, an_ask: Any, script: Any
) -> None:
    async def main() -> None:
        runner = Gated(script([65] * 100, [66] * 100))
        async with serving(runner) as client:
            events = client.generate(an_ask(max_tokens=100))
            other = asyncio.create_task(read(client, an_ask([1, 2, 3], max_tokens=4)))
            assert isinstance(await anext(events), Decided)
            runner.permits.release()
            assert isinstance(await anext(events), Chunk)
            await events.aclose()  # the second step is waiting for its permit, or will soon be
            assert client.num_running == 1
            runner.permits.release()
            requests = client.scheduler.requests
            await until(lambda: len(requests) == 1)
            assert len(client.steps_since(0)) <= 2
            (left,) = requests.values()
            assert free_blocks(client) == 256 - len(left.blocks)
            runner.permits.release(100)
            assert len(await other) == 5

    asyncio.run(main())


def test_cancelling_the_reading_task_cancels_the_request(
    serving: Any, an_ask: Any, script: Any
) -> None:
    async def main() -> None:
        runner = Gated(script([65] * 400))
        async with serving(runner) as client:
            task = asyncio.create_task(read(client, an_ask(max_tokens=400)))
            await until(lambda: client.num_running == 1)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client.num_running == 0
            runner.permits.release(500)
            await until(lambda: free_blocks(client) == 256)
            assert client.counters is not None

    asyncio.run(main())


def test_draining_refuses_the_new_and_finishes_the_rest(
    serving: Any, an_ask: Any, script: Any
) -> None:
    async def main() -> None:
        runner = Gated(script([65] * 9))
        async with serving(runner) as client:
            running = asyncio.create_task(read(client, an_ask(max_tokens=9)))
            await until(lambda: client.num_running == 1)
            client.drain()
            assert client.phase() == "draining"
            assert client.report().state == "draining"
            with pytest.raises(Unavailable) as refused:
                await read(client, an_ask())
            assert refused.value.reason is Reason.DRAINING
            assert not await client.finished(timeout_s=0.01)
            runner.permits.release(100)
            assert await client.finished(timeout_s=60)
            assert len(await running) == 10

    asyncio.run(main())


async def allow(runner: Gated, num_steps: int) -> None:
    """Let one step after the other run, with time for the client in between."""
    for _ in range(num_steps):
        runner.permits.release()
        await asyncio.sleep(0.001)


def test_a_slow_reader_is_given_up_and_hurts_nobody(serving: Any, an_ask: Any, script: Any) -> None:
    async def main() -> None:
        runner = Gated(script([65] * 300, [66] * 19))
        async with serving(runner, max_buffered_events=20) as client:
            slow = client.generate(an_ask(max_tokens=300))
            assert isinstance(await anext(slow), Decided)
            steps = asyncio.create_task(allow(runner, 150))  # too few to end by itself
            other = await read(client, an_ask(max_tokens=19))
            assert len(other) == 20
            await until(lambda: free_blocks(client) == 256)
            steps.cancel()
            rest = [event async for event in slow]
            assert isinstance(rest[-1], Broken)
            assert rest[-1].reason is Reason.SLOW_READER
            assert client.counters is not None
            key = ("chat", "admitted", "cancelled", "SlowReader")
            assert client.counters.ended[key] == 1

    asyncio.run(main())


def test_a_failing_step_breaks_its_requests_and_the_next_one_is_served(
    serving: Any, an_ask: Any, script: Any
) -> None:
    async def main() -> None:
        runner = script([65] * 5, [66] * 5)
        runner.fails = lambda step: step == 2
        async with serving(runner) as client:
            broken = (await read(client, an_ask(max_tokens=5)))[-1]
            assert isinstance(broken, Broken)
            assert "on fire" in broken.message
            answer = await read(client, an_ask(max_tokens=5))
            assert len(answer) == 6
            assert not client.stalled()

    asyncio.run(main())


def test_an_engine_whose_every_step_fails_counts_as_stalled(
    serving: Any, an_ask: Any, script: Any
) -> None:
    async def main() -> None:
        runner = script(*([65] for _ in range(9)))
        runner.fails = lambda step: True
        async with serving(runner) as client:
            for _ in range(3):
                assert not client.stalled()
                assert isinstance((await read(client, an_ask()))[-1], Broken)
            assert client.stalled()

    asyncio.run(main())


def test_a_policy_that_raises_breaks_the_requests_and_the_loop_goes_on(
    serving: Any, an_ask: Any
) -> None:
    async def main() -> None:
        async with serving(policy="fcfs") as client:
            policy = client.scheduler.policy
            plan = policy.plan

            def broken(snapshot: Any) -> Any:
                policy.plan = plan
                raise ZeroDivisionError("nobody divides by tpot")

            policy.plan = broken
            last = (await read(client, an_ask()))[-1]
            assert isinstance(last, Broken)
            assert "ZeroDivisionError" in last.message
            assert len(await read(client, an_ask(max_tokens=4))) == 5

    asyncio.run(main())


def test_when_the_thread_dies_nobody_waits_forever(serving: Any, an_ask: Any, script: Any) -> None:
    async def main() -> None:
        runner = script([65] * 5)

        def die(rows: Any) -> Any:
            raise SystemExit

        runner.step = die
        async with serving(runner) as client:
            assert isinstance((await read(client, an_ask()))[-1], Broken)
            assert client.stalled()
            with pytest.raises(Failed):
                await read(client, an_ask())

    asyncio.run(main())


def test_a_request_that_can_not_be_taken_in_breaks_alone_and_is_named(
    serving: Any, an_ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving() as client:
            poisoned = replace(an_ask(max_tokens=5, stop=None), request_id="mine")
            answer, other = await asyncio.gather(
                read(client, poisoned), read(client, an_ask(max_tokens=5))
            )
            assert isinstance(answer[0], Broken)
            assert len(other) == 6

    asyncio.run(main())
    (line,) = [r for r in caplog.records if "taken in" in r.getMessage()]
    assert vars(line)["request_id"] == "mine", "the engine's thread has no request of its own"


def test_a_frontier_that_takes_long_delays_no_token(serving: Any, an_ask: Any) -> None:
    async def main() -> None:
        async with serving() as client:
            await until(lambda: client.report().frontier)
            old = client.report()
            entered, leave = threading.Event(), threading.Event()
            frontier = client.scheduler.policy.frontier

            def slow(*args: Any) -> Any:
                entered.set()
                assert leave.wait(20)
                return frontier(*args)

            client.scheduler.policy.frontier = slow
            assert len(await read(client, an_ask(max_tokens=50))) == 51
            assert entered.wait(20)
            assert len(await read(client, an_ask(max_tokens=50))) == 51
            assert client.report() is old
            leave.set()
            await until(lambda: client.report() is not old)

    asyncio.run(main())


def test_a_loop_that_stands_still_with_work_waiting_is_stalled(
    serving: Any, an_ask: Any, script: Any
) -> None:
    async def main() -> None:
        runner = Gated(script([65] * 5))
        async with serving(runner) as client:
            client.clock.sleep_until(1000.0)  # idle for long: that is no stall
            task = asyncio.create_task(read(client, an_ask(max_tokens=5)))
            await until(lambda: client.num_running == 1)
            assert not client.stalled(after_s=10)
            client.clock.sleep_until(1011.0)
            assert client.stalled(after_s=10)
            runner.permits.release(100)
            await task
            assert not client.stalled(after_s=10)

    asyncio.run(main())


def test_an_answer_that_nobody_reads_is_no_stall(serving: Any, an_ask: Any, script: Any) -> None:
    async def main() -> None:
        runner = Gated(script([65] * 5, [66] * 5))
        async with serving(runner) as client:
            slow = client.generate(an_ask(max_tokens=5))
            assert isinstance(await anext(slow), Decided)
            runner.permits.release(5)
            await until(lambda: len(client.steps_since(0)) == 5)
            await until(lambda: free_blocks(client) == 256)
            await asyncio.sleep(0)  # the events of the last step are on their way
            client.clock.sleep_until(100.0)
            await until(lambda: not client.stalled(after_s=10))
            # a newcomer after the pause has waited for nothing yet; then the loop does hang
            task = asyncio.create_task(read(client, an_ask(max_tokens=5)))
            await until(lambda: client.num_running == 2)
            assert not client.stalled(after_s=10)
            client.clock.sleep_until(111.0)
            assert client.stalled(after_s=10)
            runner.permits.release(100)
            await task
            assert len([event async for event in slow]) == 5

    asyncio.run(main())


def test_stopping_breaks_whoever_still_reads(serving: Any, an_ask: Any, script: Any) -> None:
    async def main() -> None:
        runner = Gated(script([65] * 50))
        async with serving(runner) as client:
            task = asyncio.create_task(read(client, an_ask(max_tokens=50)))
            await until(lambda: client.num_running == 1)
            runner.permits.release(3)
            stopping = asyncio.create_task(client.stop())
            await asyncio.sleep(0)  # it has asked, and the step that runs still waits
            runner.permits.release(1)
            await stopping
            last = (await task)[-1]
            assert isinstance(last, Broken)
            assert last.reason is Reason.DRAINING

    asyncio.run(main())


def test_a_client_without_an_engine_is_loading(an_ask: Any) -> None:
    async def main() -> None:
        client = EngineClient(service="svc", replica="one")
        assert client.phase() == "loading"
        assert client.report().state == "loading"
        with pytest.raises(Unavailable) as refused:
            await read(client, an_ask())
        assert refused.value.reason is Reason.LOADING

    asyncio.run(main())


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field"),
    [("", 5, "prompt"), ("x" * 512, 5, "prompt"), ("x" * 500, 13, "max_tokens"), ("x", 0, "max_")],
)
def test_what_can_not_be_served_at_all_is_bad_input(
    serving: Any, an_ask: Any, prompt: str, max_tokens: int, field: str
) -> None:
    async def main() -> None:
        async with serving() as client:
            with pytest.raises(BadInput, match=field):
                await read(client, an_ask(prompt, max_tokens=max_tokens))
            assert client.num_running == 0
            assert len(await read(client, an_ask("x" * 500, max_tokens=12))) == 13

    asyncio.run(main())


def test_the_report_says_how_the_replica_feels(serving: Any, an_ask: Any) -> None:
    async def main() -> None:
        gates: list[Gated] = []

        def gated(runner: Any) -> Gated:
            gates.append(Gated(runner))
            return gates[0]

        async with serving(wrap=gated) as client:
            permits = gates[0].permits
            await until(lambda: client.report().frontier)
            report = client.report()
            assert (report.service, report.replica, report.state) == ("svc", "one", "ready")
            assert report.frontier["chat"].contains(300)
            assert (report.free_blocks, report.total_blocks) == (256, 256)
            task = asyncio.create_task(read(client, an_ask("x" * 40, max_tokens=50, tpot_s=0.5)))
            await until(lambda: client.num_running == 1)
            permits.release(10)
            await until(lambda: client.report().num_running == 1)
            report = client.report()
            assert report.tightest_tpot_s == 0.5
            assert report.free_blocks < 256
            assert report.token_supply_per_s > 0
            permits.release(100)
            await task
            await until(lambda: client.report().free_blocks == 256)

    asyncio.run(main())


def test_whoever_is_ready_has_a_frontier_for_every_class(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, gateways would take it for a replica that fits nothing."""
    renewed = Reporter._renewed

    def late(self: Reporter, job: Any) -> Any:
        time.sleep(0.1)  # on a busy machine
        return renewed(self, job)

    monkeypatch.setattr(Reporter, "_renewed", late)

    async def main() -> None:
        async with serving() as client:
            report = client.report()
            assert report.state == "ready"
            assert set(report.frontier) == set(client.scheduler.classes) != set()

    asyncio.run(main())


def test_classes_change_while_it_runs(serving: Any) -> None:
    async def main() -> None:
        async with serving() as client:
            await until(lambda: set(client.report().frontier) == {"chat"})
            fast = SloClass("fast", ttft=Ttft(target_s=0.1), stages=(Stage("decode", 0.1),))
            client.set_classes([fast], generation=7)
            await until(lambda: set(client.report().frontier) == {"fast"})
            assert client.report().config_generation == 7

    asyncio.run(main())


def test_the_way_out_is_taken_off_every_deadline(serving: Any, an_ask: Any) -> None:
    async def main() -> None:
        async with serving() as client:
            ask = an_ask("x", ttft_s=0.05, on_infeasible=OnInfeasible.DECLINE, max_tokens=1)
            assert len(await read(client, ask)) == 2
            client.set_way_out(0.045)
            late = replace(ask, key="late", arrival_s=client.clock.now_s())
            (declined,) = await read(client, late)
            assert isinstance(declined, Decided)
            assert declined.decision is Decision.DECLINED

    asyncio.run(main())
