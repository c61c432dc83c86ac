"""Convergence under any order of events, failures and restarts."""

import asyncio
import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator.api import CHILD_KINDS, Key, Obj
from sloserve_operator.cluster import ApiError
from sloserve_operator.conditions import Type

Fake = Any
Make = Callable[..., Obj]
CHAT = Key("team", "chat")
NUM_CHILDREN = 11


World = Any


def children(cluster: Fake) -> set[str]:
    return {f"{k}/{n}" for (k, _, n) in cluster.objects if k in CHILD_KINDS}


@pytest.mark.parametrize("seed", range(25))
def test_it_converges_under_any_order_of_events_failures_and_restarts(
    world: World, manifest: Make, seed: int
) -> None:
    """Events late, twice, never; applies that fail; an operator that dies in the middle."""
    rng = random.Random(seed)
    changes: list[dict[str, Any]] = [
        {"replicas": 3},
        {"replicas": 0},
        {"engine": {"maxRunning": 8}},
        {"gateway": {"replicas": 1}},
        {"defaultClass": "slow"},
        {},
    ]

    def flaky(verb: str, kind: str, name: str) -> ApiError | None:
        return ApiError(503, "flaky") if rng.random() < 0.15 and verb != "list" else None

    async def story() -> None:
        last: Obj = manifest()
        world.cluster.put(last)
        world.cluster.fail = flaky
        for _ in range(120):
            action = rng.random()
            if action < 0.4 and world.events:
                number = rng.randrange(len(world.events))
                if rng.random() < 0.15:
                    world.events.insert(0, copy.deepcopy(world.events[number]))  # heard twice
                world.hear(number)
            elif action < 0.45 and world.events:
                world.events.pop(rng.randrange(len(world.events)))  # lost for good
            elif action < 0.75 and world.dirty:
                try:
                    await world.look(rng.choice(list(world.dirty)))
                except ApiError:
                    world.dirty[CHAT] = None
            elif action < 0.82:
                last = manifest(**rng.choice(changes))
                world.cluster.put(last)
            elif action < 0.88:
                world.cluster.roll_out()
            elif action < 0.91:
                doomed = rng.choice(
                    [k for k in world.cluster.objects if k[0] != "SLOService"] or [None]
                )
                if doomed is not None:
                    world.cluster.remove(*doomed)
            elif action < 0.94:
                world.restart()
                await world.resync()
            elif action < 0.96:
                world.cluster.remove("SLOService", "team", "chat")
                last = manifest()
                last["metadata"]["uid"] = f"uid-{rng.random()}"
                world.cluster.put(last)
        world.cluster.fail = lambda verb, kind, name: None
        world.time_s += 120
        await world.resync()
        await world.settle()
        assert len(children(world.cluster)) == NUM_CHILDREN
        spec = last["spec"]
        replicas = world.cluster.one("Deployment", "chat-replica")
        assert replicas["spec"]["replicas"] == spec["replicas"]
        uid = world.cluster.one("SLOService", "chat")["metadata"]["uid"]
        for (kind, _, _), obj in world.cluster.objects.items():
            if kind in CHILD_KINDS:
                assert obj["metadata"]["ownerReferences"][0]["uid"] == uid
        assert world.status["ready"] == f"{spec['replicas']}/{spec['replicas']}"
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")
        before = len(world.cluster.writes)
        await world.look()
        assert len(world.cluster.writes) == before

    asyncio.run(story())
