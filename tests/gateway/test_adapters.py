"""Adapters are names of their own: listed, routed by, added while replicas are replaced."""

import asyncio
import json
from dataclasses import replace
from typing import Any

from sloserve.routing import prefix_keys
from sloserve.slo import LoraSpec

Make = Any
"""A builder from conftest."""


def adapted(spec: Any, *names: str) -> Any:
    """The next generation of a service, with these adapters."""
    lora = tuple(LoraSpec(name, f"hf://org/{name}") for name in names)
    return replace(spec, model=replace(spec.model, lora=lora), generation=spec.generation + 1)


def test_adapters_are_listed_under_their_model_and_asked_for_by_name(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        one = replica("r0", model="assistant", adapters=("polite", "terse"))
        async with gateway(one) as world:
            world.core.apply(adapted(world.core.spec, "polite", "terse"))
            listed = (await world.get("/v1/models")).json["data"]
            assert [(m["id"], m["root"], m["parent"]) for m in listed] == [
                ("assistant", "builtin://sim", None),
                ("polite", "hf://org/polite", "assistant"),
                ("terse", "hf://org/terse", "assistant"),
            ]
            for name in ("polite", "assistant", "terse"):
                assert (await world.ask(model=name)).status == 200
            assert [json.loads(a.body)["model"] for a in one.asked] == [
                "polite",
                "assistant",
                "terse",
            ]
            answer = await world.ask(model="rude")
            assert answer.status == 404
            assert "served: assistant, polite, terse" in answer.json["error"]["message"]
            text = (await world.internal("/metrics")).text
            assert 'model="polite"' not in text, "series are by model, whatever its adapters"

    asyncio.run(story())


def test_a_new_adapter_is_asked_of_the_replicas_that_have_it_while_the_others_leave(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        old = replica("old", model="assistant")
        new = replica("new", model="assistant", adapters=("polite",))
        async with gateway(old, new) as world:
            world.core.apply(adapted(world.core.spec, "polite"))
            for _ in range(3):
                answer = await world.ask(model="polite", stream=True)
                assert (answer.status, answer.headers["x-slo-replica"]) == (200, "new")
            assert (await world.ask(model="assistant")).status == 200
            assert len([a for a in old.asked if json.loads(a.body)["model"] == "polite"]) <= 1

    asyncio.run(story())


def test_the_same_text_under_another_adapter_is_another_prefix() -> None:
    text = "so it begins " * 100
    plain, polite = (
        prefix_keys(text, tokens_per_char=0.25, adapter=name) for name in ("", "polite")
    )
    assert [tokens for _, tokens in plain] == [tokens for _, tokens in polite]
    assert not {key for key, _ in plain} & {key for key, _ in polite}
