"""What is written and kept while traffic moves every number."""

import asyncio
from collections.abc import Callable
from typing import Any

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, Obj
from sloserve_operator.budget import parse_counted
from sloserve_operator.conditions import Type

Fake = Any
Make = Callable[..., Obj]
World = Any


def written(world: World, since: int) -> list[str]:
    """Kinds of what was written."""
    return [kind for _, kind, _ in world.cluster.writes[since:]]


async def report_of(world: World, make: Make, *, total: int, attained: int) -> list[str]:
    """Both gateways have counted so much; what is written because of it."""
    before = len(world.cluster.writes)
    classes = {"fast": (total, attained), "slow": (0, 0)}
    world.hear_gateways(make, classes=classes)
    await world.look()
    return written(world, before)


def days(world: World) -> tuple[int, int]:
    told = world.status["classes"][0]["days"][0]
    return told["total"], told["attained"]


def test_a_share_that_moves_takes_one_write_and_counts_take_their_notes_along(
    world: World, manifest: Make, report: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        first = await report_of(world, report, total=100, attained=80)
        assert sorted(set(first) - {"Event"}) == ["Pod", "SLOService"]
        assert days(world) == (200, 160)
        world.time_s = 10.0
        assert await report_of(world, report, total=110, attained=88) == []  # 80 % as before
        world.time_s = 40.0
        assert await report_of(world, report, total=150, attained=100) == ["SLOService"]
        assert world.status["classes"][0]["attainment5m"] == "66.7"
        assert days(world) == (200, 160)  # as the notes on the pods say
        world.time_s = 80.0
        assert await report_of(world, report, total=153, attained=102) == []
        world.time_s = 301.0
        assert await report_of(world, report, total=156, attained=104) == [
            "SLOService",
            "Pod",
            "Pod",
        ]
        assert days(world) == (312, 208)

    asyncio.run(story())


def test_an_operator_that_dies_after_a_share_was_written_counts_nothing_twice(
    world: World, manifest: Make, report: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        await report_of(world, report, total=100, attained=80)
        world.time_s = 40.0
        await report_of(world, report, total=150, attained=100)
        world.restart()
        await world.resync()
        await report_of(world, report, total=160, attained=105)
        assert days(world) == (320, 210)
        for pod in world.cluster.all("Pod"):
            counted = parse_counted(pod["metadata"].get("annotations", {}).get(names.COUNTED))
            assert counted is None or counted.classes["fast"].total == 160

    asyncio.run(story())


def test_requests_that_come_while_a_service_misses_are_no_news_by_themselves(
    world: World, manifest: Make, report: Make
) -> None:
    """The message of SLOMet has their number."""

    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        await report_of(world, report, total=1000, attained=800)
        assert world.condition(Type.SLO_MET) == ("False", "Missed")
        for number in range(1, 10):
            world.time_s = 30.0 * number
            total = 1000 + 10 * number
            assert await report_of(world, report, total=total, attained=total * 4 // 5) == []

    asyncio.run(story())


def test_children_are_kept_in_outline_and_still_healed(world: World, manifest: Make) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        await world.look()
        kept = [obj for kind in CHILD_KINDS for obj in world.cache.of_kind(kind)]
        assert len(kept) == 11
        assert not [obj for obj in kept if "template" in obj.get("spec", {}) or "data" in obj]
        before = len(world.cluster.writes)
        await world.resync()  # whole objects of versions that are known
        await world.settle()
        assert written(world, before) == []
        for kind, change in (("Service", {"type": "NodePort"}), ("Deployment", {"template": {}})):
            found = world.cluster.one(kind, "chat-gateway")
            world.cluster.put({**found, "spec": {**found["spec"], **change}})
            before = len(world.cluster.writes)
            await world.settle(roll_out=False)
            assert kind in written(world, before)
            healed = world.cluster.one(kind, "chat-gateway")["spec"]
            assert change.items().isdisjoint(healed.items())

    asyncio.run(story())


def test_a_spec_that_changes_while_status_is_written_is_looked_at(
    world: World, manifest: Make
) -> None:
    """The answer to the write holds it already, so its own event is no news any more."""

    def change(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == ("apply", "SLOService"):
            world.cluster.fail = lambda verb, kind, name: None
            world.cluster.put(manifest(replicas=3))

    async def story() -> None:
        world.cluster.put(manifest())
        while world.events:
            world.hear()
        world.cluster.fail = change
        assert await world.look() is not None
        assert world.cluster.one("Deployment", "chat-replica")["spec"]["replicas"] == 2
        while world.events:
            world.hear()
        await world.look()
        assert world.cluster.one("Deployment", "chat-replica")["spec"]["replicas"] == 3
        await world.settle()
        assert await world.look() is None  # and nothing more

    asyncio.run(story())


def test_a_spec_that_changes_while_only_status_is_written_asks_for_a_look(
    world: World, manifest: Make, report: Make
) -> None:
    def change(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == ("apply", "SLOService"):
            world.cluster.fail = lambda verb, kind, name: None
            world.cluster.put(manifest(replicas=3))

    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        world.cluster.fail = change
        world.hear_gateways(report, classes={"fast": (100, 80), "slow": (0, 0)})
        again_s = await world.look()
        assert again_s is not None
        assert again_s <= 1.0
        world.events.clear()  # as if they were all no news
        await world.look()
        assert world.cluster.one("Deployment", "chat-replica")["spec"]["replicas"] == 3

    asyncio.run(story())
