"""The model's names, and text to tokens and back, through a gateway."""

import asyncio
import hashlib
import json
from typing import Any

import openai
import pytest

from sloserve.gateway.keys import Key

Make = Any
"""A builder from conftest."""


def a_key(name: str, secret: str, **rights: Any) -> Key:
    return Key(name, hashlib.sha256(secret.encode()).digest(), **rights)


def test_openais_client_finds_the_model_by_its_name(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with (
            gateway(replica()) as world,
            openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="x", max_retries=0) as client,
        ):
            assert [m.id for m in (await client.models.list()).data] == ["assistant"]
            assert (await client.models.retrieve("assistant")).id == "assistant"
            with pytest.raises(openai.NotFoundError, match="served: assistant"):
                await client.models.retrieve("gpt-9")

    asyncio.run(story())


def test_text_becomes_tokens_and_tokens_text(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            body = {"model": "assistant", "prompt": "ab", "add_special_tokens": False}
            told = await world.post("/tokenize", json.dumps(body).encode())
            assert (told.status, told.json) == (200, {"tokens": [97, 98]})
            told = await world.post("/detokenize", b'{"tokens": [97, 98]}')
            assert told.json == {"prompt": "ab"}
            assert (await world.get("/tokenizer_info")).json == {"eos_token": "<|end|>"}
            assert "version" in (await world.get("/version")).json

    asyncio.run(story())


def test_tokens_come_from_the_next_replica_when_one_is_gone_or_refuses(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        first, second = replica(name="r0"), replica(name="r1")
        async with gateway(first, second) as world:

            async def status() -> int:
                answer = await world.post("/tokenize", b'{"prompt": "a"}')
                assert answer.status == 200 or "retry-after" in answer.headers
                return int(answer.status)

            asked_first = min((first, second), key=lambda r: r.address)
            asked_first.acts.append(act(status=503))
            assert await status() == 200
            assert [len(first.asked), len(second.asked)] == [1, 1]

            for each in (first, second):
                each.acts.append(act(status=503))
            assert await status() == 503

            second.says(state="draining")
            await world.until(lambda: world.hears("ready", "draining"))
            num_before = len(second.asked)
            assert await status() == 200
            assert len(second.asked) == num_before

    asyncio.run(story())


def test_a_replica_that_is_being_replaced_does_not_decide_about_a_name(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        old, new = replica(name="r0", model="former"), replica(name="r1", model="assistant")
        async with gateway(old, new) as world:
            for _ in range(2):
                told = await world.post("/tokenize", b'{"model": "assistant", "prompt": "a"}')
                assert told.json == {"tokens": [97]}
            told = await world.post("/tokenize", b'{"model": "gpt-9", "prompt": "a"}')
            assert told.status == 404
            assert not any(b"gpt-9" in asked.body for asked in (*old.asked, *new.asked))

    asyncio.run(story())


def test_keys_and_their_limits_hold_for_tokens_as_well(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        keys = (
            a_key("all", "good", requests_per_minute=1),
            a_key("other", "bad", models=("other",)),
        )
        async with gateway(replica(), keys=keys) as world:
            good, bad = ({"authorization": f"Bearer {s}"} for s in ("good", "bad"))
            body = b'{"prompt": "a"}'
            assert (await world.post("/tokenize", body)).status == 401
            assert (await world.get("/tokenizer_info")).status == 401
            assert (await world.get("/v1/models/assistant")).status == 401
            assert (await world.post("/tokenize", body, bad)).status == 403
            assert (await world.get("/v1/models/assistant", bad)).status == 403
            assert (await world.post("/tokenize", body, good)).status == 200
            told = await world.post("/tokenize", body, good)
            assert told.status == 429
            assert "retry-after" in told.headers

    asyncio.run(story())


def test_bodies_that_are_no_json_are_refused_before_a_replica_sees_them(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            told = await world.post("/tokenize", b"[1]")
            assert told.status == 400
            assert "a JSON object" in told.json["error"]["message"]
            assert not world.replicas[0].asked

    asyncio.run(story())
