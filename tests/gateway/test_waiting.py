"""Requests that nobody can take now: pending, held, refused."""

import asyncio
import dataclasses
from typing import Any

import pytest

from sloserve.gateway import pending
from sloserve.gateway.pending import WaitingRoom

Make = Any
"""A builder from conftest."""


def test_a_request_pends_until_a_replica_has_room_and_is_then_deferred(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        replicas = [replica("a"), replica("b")]
        for one in replicas:
            one.full()
        async with gateway(*replicas) as world:
            await world.until(lambda: world.hears("ready", "ready"))
            asking = asyncio.create_task(world.ask(stream=True))
            await world.until(lambda: len(world.core.room) == 1)
            assert world.core.ledger.num_pending("chat") == 1
            assert not any(r.asked for r in world.replicas)
            world.replicas[1].has_room()
            answer = await asking
            assert answer.headers["x-slo-decision"] == "deferred"
            assert answer.headers["x-slo-replica"] == "b"
            asked = world.replicas[1].asked[0]
            assert float(asked.headers["x-sloserve-age-ms"]) > 0
            assert world.core.ledger.num_pending("chat") == 0
            assert world.judged() == (1, 1, 1, 1)

    asyncio.run(story())


def test_when_the_slack_is_gone_the_last_hop_decides(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        replicas = [replica("a"), replica("b")]
        for one in replicas:
            one.full()
            one.default = act(status=429, decision="declined", reason="TTFT")
        async with gateway(*replicas) as world:
            answer = await world.ask(stream=True, headers={"x-slo-class": "strict"})
            assert answer.status == 429
            asked = [a for r in world.replicas for a in r.asked]
            assert [a.headers["x-sloserve-last-hop"] for a in asked] == ["1"]
            assert 400 < float(asked[0].headers["x-sloserve-age-ms"]) < 5000
            assert world.judged("strict") == (1, 0, 0, 0)

    asyncio.run(story())


def test_a_degraded_answer_is_served_and_missed(gateway: Make, replica: Make, act: Make) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            world.replicas[0].default = act(decision="degraded", reason="TTFT")
            answer = await world.ask(stream=True)
            assert answer.status == 200
            assert answer.headers["x-slo-decision"] == "degraded"
            assert answer.headers["x-slo-reason"] == "TTFT"
            assert world.judged() == (1, 0, 0, 0)

    asyncio.run(story())


def test_a_request_is_held_while_the_model_loads(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        upstream = replica()
        upstream.says(state="loading", frontier={})
        async with gateway(upstream) as world:
            asking = asyncio.create_task(world.ask(stream=True))
            await world.until(lambda: len(world.core.room) == 1)
            world.replicas[0].says(state="ready")
            world.replicas[0].has_room()
            answer = await asking
            assert answer.status == 200
            assert answer.headers["x-slo-decision"] == "deferred"

    asyncio.run(story())


def test_holding_ends_with_503_and_says_when_to_come_again(
    gateway: Make, replica: Make, spec: Make
) -> None:
    async def story() -> None:
        upstream = replica()
        upstream.says(state="loading", frontier={})
        async with gateway(upstream, spec=spec(holdTimeout="200ms")) as world:
            answer = await world.ask(stream=True)
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-slo-reason"] == "Loading"
            assert answer.json["error"]["code"] == "Loading"
            assert world.judged() == (1, 0, 0, 0)

    asyncio.run(story())


def test_without_replicas_and_none_coming_the_answer_is_503_at_once(
    gateway: Make, spec: Make
) -> None:
    async def story() -> None:
        async with gateway(spec=spec(replicas=0)) as world:
            answer = await world.ask(stream=True)
            assert answer.status == 503
            assert answer.headers["x-slo-reason"] == "Replicas"
            assert "retry-after" in answer.headers
            assert (await world.get("/ready")).status == 200

    asyncio.run(story())


def test_a_draining_replica_that_says_so_late_costs_nothing(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        busy = act(status=503, decision="", reason="Draining")
        replicas = [replica("a", default=busy), replica("b")]
        async with gateway(*replicas) as world:
            for _ in range(4):
                assert (await world.ask(stream=True)).status == 200

    asyncio.run(story())


def test_a_replica_of_another_service_is_never_used(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        stranger = replica("x", service="other")
        async with gateway(replica("a"), stranger) as world:
            for _ in range(4):
                answer = await world.ask(stream=True)
                assert answer.headers["x-slo-replica"] == "a"
            assert not stranger.asked
            seen = (await world.get("/v1/slo")).json["replicas"]
            problems = {r["address"]: r["problem"] for r in seen}
            assert problems[stranger.address] == "belongs to service 'other'"

    asyncio.run(story())


def test_a_silent_replica_is_unknown_after_a_second_and_others_are_used(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        silent = replica("a")
        async with gateway(silent, replica("b")) as world:
            silent.silent = True
            await world.until(lambda: world.hears("unknown", "ready"))
            for _ in range(4):
                answer = await world.ask(stream=True)
                assert answer.headers["x-slo-replica"] == "b"
            assert not silent.asked
            silent.silent = False

    asyncio.run(story())


def test_a_replica_that_can_not_be_reached_is_passed_over(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with gateway(replica("a"), extra=[("127.0.0.1", 1)]) as world:
            assert (await world.ask(stream=True)).status == 200
            seen = (await world.get("/v1/slo")).json["replicas"]
            assert {r["state"] for r in seen} == {"ready", "unknown"}
            gone = next(r for r in seen if r["state"] == "unknown")
            await world.until(
                lambda: "connect" in world.core.replicas.known[gone["address"]].problem
            )

    asyncio.run(story())


def test_too_many_waiting_are_declined(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        replicas = [replica("a"), replica("b")]
        for one in replicas:
            one.full()
        async with gateway(*replicas) as world:
            world.core.room._max_pending = 1
            first = asyncio.create_task(world.ask(stream=True))
            await world.until(lambda: len(world.core.room) == 1)
            answer = await world.ask(stream=True)
            assert answer.status == 429
            assert answer.headers["x-slo-decision"] == "declined"
            assert answer.headers["x-slo-reason"] == "QueueFull"
            world.replicas[0].has_room()
            assert (await first).status == 200

    asyncio.run(story())


def test_a_class_added_live_starts_at_zero_and_is_served(
    gateway: Make, replica: Make, spec: Make
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            refused = await world.ask(headers={"x-slo-class": "new"})
            assert refused.status == 400
            assert "known: chat, strict" in refused.json["error"]["message"]
            classes = [
                {"name": "chat", "ttft": {"target": "5s"}, "tpot": "2s"},
                {"name": "new", "ttft": {"target": "3s"}, "tpot": "1s"},
            ]
            world.core.apply(dataclasses.replace(spec(classes=classes), generation=2))
            text = (await world.internal("/metrics")).text
            labels = 'model="assistant",service="assistant",slo_class="new"'
            assert f"sloserve_slo_requests_total{{{labels}}} 0.0" in text
            for promise in ("ttft", "tpot", "all"):
                name = "sloserve_slo_attained_total"
                wanted = f'{name}{{model="assistant",promise="{promise}",service="assistant",'
                assert f'{wanted}slo_class="new"}} 0.0' in text
            assert "sloserve_config_generation 2.0" in text
            answer = await world.ask(stream=True, headers={"x-slo-class": "new"})
            assert answer.headers["x-slo-class"] == "new"
            assert world.judged("new") == (1, 1, 1, 1)
            assert (await world.ask(headers={"x-slo-class": "strict"})).status == 400

    asyncio.run(story())


def test_those_due_first_are_woken_first() -> None:
    async def story() -> list[str]:
        room, order = WaitingRoom(), list[str]()

        async def one(name: str, due_s: float) -> None:
            await room.wait(due_s=due_s, timeout_s=10)
            order.append(name)

        tasks = [asyncio.create_task(one(n, d)) for n, d in (("b", 2.0), ("c", 3.0), ("a", 1.0))]
        await asyncio.sleep(0)
        room.ring()
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(story()) == ["a", "b", "c"]


def test_when_very_many_wait_everybody_gets_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MAX_WOKEN", 2)

    async def story() -> dict[int, int]:
        room, turns = WaitingRoom(), dict.fromkeys(range(5), 0)

        async def one(number: int) -> None:
            while True:
                await room.wait(due_s=number, timeout_s=10, num_before=turns[number])
                turns[number] += 1

        tasks = [asyncio.create_task(one(number)) for number in turns]
        while sum(turns.values()) < 20:
            await asyncio.sleep(0)
            room.ring()
            await asyncio.sleep(pending.COALESCE_S * 1.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return turns

    assert set(asyncio.run(story()).values()) == {4}
