"""A model gets another name: its replicas are replaced, and nobody is turned away meanwhile."""

import asyncio
import json
from dataclasses import replace
from typing import Any

Make = Any
"""A builder from conftest."""


def renamed(spec: Any, name: str) -> Any:
    """The next generation of a service, whose model has another name."""
    model = replace(spec.model, served_name=name)
    return replace(spec, model=model, generation=spec.generation + 1)


def test_both_names_are_answered_while_replicas_are_replaced(
    gateway: Make, replica: Make, spec: Make
) -> None:
    async def story() -> None:
        old, new = replica("old", model="assistant"), replica("new", model="helper")
        async with gateway(old, new) as world:
            world.core.apply(renamed(spec(), "helper"))
            for name, by in (("assistant", "old"), ("helper", "new")) * 3:
                answer = await world.ask(model=name, stream=True)
                assert (answer.status, answer.headers["x-slo-replica"]) == (200, by)
                assert answer.headers["x-slo-hops"] == "1"
            for one in world.replicas:
                wrong = [a for a in one.asked if json.loads(a.body)["model"] != one.model]
                assert len(wrong) <= 1, "it had said that it has no such model"

    asyncio.run(story())


def test_a_new_name_is_held_until_a_replica_answers_to_it(
    gateway: Make, replica: Make, spec: Make
) -> None:
    async def story() -> None:
        old, new = replica("old", model="assistant"), replica("new", model="helper")
        async with gateway(old, new, spec=spec(holdTimeout="60s")) as world:
            world.unlist(new)
            await world.until(lambda: world.hears("ready"))
            world.core.apply(renamed(world.core.spec, "helper"))
            asking = asyncio.create_task(world.ask(model="helper", stream=True))
            await world.until(lambda: len(world.core.room) == 1)
            assert (await world.ask(model="assistant")).status == 200
            host, _, port = new.address.rpartition(":")
            world.listed.append((host, int(port)))
            answer = await asking
            assert (answer.status, answer.headers["x-slo-replica"]) == (200, "new")
            assert len(old.asked) == 2, "the old one was asked once for a name it has not"

    asyncio.run(story())


def test_an_old_name_is_unknown_when_the_last_replica_that_had_it_leaves(
    gateway: Make, replica: Make, spec: Make
) -> None:
    async def story() -> None:
        old, new = replica("old", model="assistant"), replica("new", model="helper")
        async with gateway(old, new, spec=spec(holdTimeout="60s")) as world:
            world.unlist(new)
            await world.until(lambda: world.hears("ready"))
            world.core.apply(renamed(world.core.spec, "helper"))
            host, _, port = new.address.rpartition(":")
            world.listed.append((host, int(port)))
            await world.until(lambda: world.hears("ready", "ready"))
            old.says(state="draining")
            await world.until(lambda: world.hears("draining", "ready"))
            counted = world.judged()
            answer = await world.ask(model="assistant")
            assert answer.status == 404
            assert "served: helper" in answer.json["error"]["message"]
            assert world.judged() == counted, "what is asked for wrongly is no broken promise"
            assert (await world.ask(model="helper")).status == 200

    asyncio.run(story())


def test_a_name_that_no_replica_knows_is_not_held(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with gateway(replica("a", model="other"), replica("b", model="other")) as world:
            answer = await world.ask(model="assistant")
            assert answer.status == 404
            assert answer.json["error"]["code"] == "model_not_found"
            assert world.judged() == (0, 0, 0, 0)
            assert (await world.ask(model="nobody")).status == 404
            assert {len(r.asked) for r in world.replicas} == {1}, "each was asked once"

    asyncio.run(story())
