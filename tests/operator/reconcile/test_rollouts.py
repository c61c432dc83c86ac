"""Rollouts, class changes, upgrades, scaling down."""

import asyncio
from collections.abc import Callable
from typing import Any

from sloserve_operator import names
from sloserve_operator.api import Key, Obj
from sloserve_operator.conditions import Type
from sloserve_operator.settings import Images, OperatorSettings

Make = Callable[..., Obj]


World = Any


def test_a_class_change_reaches_pods_without_a_restart(
    world: World, manifest: Make, report: Callable[..., Obj], replica: Callable[..., Obj]
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        world.hear_gateways(report, replicas=[replica()])
        await world.settle()
        assert world.condition(Type.READY) == ("True", "Ready")
        assert world.status["observedGeneration"] == 1
        pods = {p["metadata"]["uid"] for p in world.cluster.all("Pod")}
        slower = [{"name": "fast", "ttft": {"target": "3s"}, "tpot": "90ms"}]
        world.cluster.put(manifest(sloClasses=slower))
        await world.settle()
        assert {p["metadata"]["uid"] for p in world.cluster.all("Pod")} == pods
        for pod in world.cluster.all("Pod"):
            assert pod["metadata"]["annotations"][names.CONFIG_GENERATION] == "2"
        assert world.condition(Type.READY) == ("False", "ConfigNotRead")
        assert world.status["observedGeneration"] == 1
        world.hear_gateways(report, generation=2, replicas=[replica(generation=2)])
        await world.settle()
        assert world.condition(Type.READY) == ("True", "Ready")
        assert world.status["observedGeneration"] == 2

    asyncio.run(story())


def test_an_operator_upgrade_restarts_gateways_but_no_engine(world: World, manifest: Make) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        world.settings = OperatorSettings(images=Images(gateway="r/gateway:next"))
        world.restart()
        await world.resync()
        await world.settle()
        images = {
            d["metadata"]["name"]: d["spec"]["template"]["spec"]["containers"][0]["image"]
            for d in world.cluster.all("Deployment")
        }
        assert images["chat-gateway"] == "r/gateway:next"
        assert images["chat-replica"] == Images().gateway
        world.cluster.put(manifest(engine={"maxRunning": 8}))
        await world.settle()
        live = world.cluster.one("Deployment", "chat-replica")
        assert live["spec"]["template"]["spec"]["containers"][0]["image"] == "r/gateway:next"

    asyncio.run(story())


def test_only_a_few_services_are_restarted_by_an_upgrade_at_a_time(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        for number in range(8):
            world.cluster.put(manifest(name=f"s{number}"))
        await world.settle()
        world.settings = OperatorSettings(images=Images(gateway="r/next:1"), max_rollouts=3)
        world.restart()
        await world.resync()
        for _ in range(4):
            for key in list(world.dirty) or [Key("team", f"s{n}") for n in range(8)]:
                await world.look(key)
        assert num_upgraded(world) == 3
        for _ in range(4):
            await world.settle()
            world.dirty |= {Key("team", f"s{n}"): None for n in range(8)}
        await world.settle()
        assert num_upgraded(world) == 8

    asyncio.run(story())


def num_upgraded(world: World) -> int:
    images = [
        d["spec"]["template"]["spec"]["containers"][0]["image"]
        for d in world.cluster.all("Deployment")
        if d["metadata"]["name"].endswith("-gateway")
    ]
    return images.count("r/next:1")


def test_scale_down_tells_first_which_pods_are_cheap(
    world: World, manifest: Make, report: Callable[..., Obj], replica: Callable[..., Obj]
) -> None:
    async def story() -> None:
        world.cluster.put(manifest(replicas=3))
        await world.settle()
        pods = [p for p in world.cluster.all("Pod") if "replica" in p["metadata"]["name"]]
        loads = dict(zip((p["status"]["podIP"] for p in pods), (5, 0, 3), strict=True))
        told = [replica(address=f"{ip}:8000", running=load) for ip, load in loads.items()]
        world.hear_gateways(report, replicas=told)
        await world.settle()
        start = len(world.cluster.writes)
        world.cluster.put(manifest(replicas=1))
        await world.settle(roll_out=False)
        kinds = [write[:2] for write in world.cluster.writes[start:]]
        assert kinds.index(("merge", "Pod")) < kinds.index(("apply", "Deployment"))
        world.cluster.roll_out()
        (left,) = [p for p in world.cluster.all("Pod") if "replica" in p["metadata"]["name"]]
        assert loads[left["status"]["podIP"]] == 5  # the busiest one stays

    asyncio.run(story())
