"""The client: answers, hanging up, draining, slow readers, and an engine that breaks."""

import asyncio
from contextlib import aclosing
from typing import Any

from sloserve.engine.client import EngineClient
from sloserve.engine.events import Chunk, Decided, Event, Generate
from sloserve.slo import Decision


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
