"""Shapes, calls and thinking through the whole chain: official client, gateway, real replica."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from sloserve.engine.client import EngineClient
from sloserve.frontend.app import create_app
from sloserve.frontend.loading import load, make_scheduler
from sloserve.frontend.replica import Replica, Served
from sloserve.gateway.peek import peek
from sloserve.http.serve import Listener, bind, serving
from sloserve.slo import ServiceSpec
from sloserve.tools.formats import HERMES

ASK: list[Any] = [{"role": "user", "content": "hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
]
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": PARAMETERS}}
STAGES = [
    {"name": "thinking", "tpot": "2s", "until": "words"},
    {"name": "answer", "tpot": "2s"},
]
REASON = {"name": "reason", "ttft": {"target": "5s"}, "stages": STAGES}


@contextlib.asynccontextmanager
async def real_replica(spec: ServiceSpec) -> AsyncIterator[tuple[str, int]]:
    """A replica of the simulated model, which follows grammars on the shortest way."""
    replica, sock = Replica(spec, name="r0"), bind("127.0.0.1", 0)
    engine = EngineClient(service=spec.name, replica=replica.name)
    loaded = load(spec, profile=None, on_phase=lambda *_: None)
    async with serving([Listener(create_app(replica), sock)], grace_s=1):
        engine.start(
            make_scheduler(spec, loaded, policy="sloserve"), loaded.runner, loaded.tokenizer
        )
        served = Served(
            engine,
            loaded.tokenizer,
            loaded.facts,
            loaded.profile.step,
            grammars=loaded.grammars,
            tool_format=HERMES,
        )
        replica.attach(served)
        replica.ready = True
        try:
            yield sock.getsockname()[:2]
        finally:
            await engine.stop()


@contextlib.asynccontextmanager
async def chain(gateway: Any, spec: ServiceSpec) -> AsyncIterator[Any]:
    """The gateway in front of it, when it has heard of it."""
    async with (
        real_replica(spec) as address,
        gateway(extra=[address], spec=spec) as world,
    ):
        await world.until(lambda: world.hears("ready"))
        yield world


def everything(client: openai.OpenAI) -> int:
    """Shapes and calls, whole and streamed; the output tokens that usage tells."""
    num_tokens = 0

    def whole(**fields: Any) -> Any:
        nonlocal num_tokens
        answer: Any = client.chat.completions.create(model="assistant", messages=ASK, **fields)
        num_tokens += answer.usage.completion_tokens
        return answer.choices[0]

    def streamed(**fields: Any) -> Any:
        nonlocal num_tokens
        with client.chat.completions.stream(
            model="assistant", messages=ASK, stream_options={"include_usage": True}, **fields
        ) as stream:
            answer: Any = stream.until_done().get_final_completion()
        num_tokens += answer.usage.completion_tokens
        return answer.choices[0]

    for ask in (whole, streamed):
        shaped = ask(response_format=SCHEMA)
        assert json.loads(shaped.message.content)["city"] in ("Paris", "Rome")
        assert shaped.finish_reason == "stop"
        called = ask(tools=TOOLS, tool_choice="required")
        assert called.finish_reason == "tool_calls"
        (call,) = called.message.tool_calls
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
        chosen = ask(extra_body={"guided_choice": ["red", "blue"]}, n=1)
        assert chosen.message.content in ("red", "blue")
        thought = ask(extra_headers={"x-slo-class": "reason"}, stop=", but")
        assert thought.message.reasoning_content == "This is a simulated answer: its "
        assert thought.message.content == "mean nothing"
    many = whole(response_format=SCHEMA, n=3)
    assert json.loads(many.message.content)
    return num_tokens


async def everything_async(client: openai.AsyncOpenAI) -> int:
    """A streamed call, and several side by side, by the asynchronous client."""
    stream = await client.chat.completions.create(
        model="assistant", messages=ASK, tools=TOOLS, tool_choice="required", stream=True, n=2,
        stream_options={"include_usage": True},
    )  # fmt: skip
    arguments, reasons, num_tokens = {0: "", 1: ""}, {}, 0
    async for chunk in stream:
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                assert call.function is not None
                arguments[choice.index] += call.function.arguments or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert all(json.loads(text)["city"] for text in arguments.values())
    assert reasons == {0: "tool_calls", 1: "tool_calls"}
    return num_tokens


def test_all_of_it_passes_the_gateway_and_every_token_is_counted(gateway: Any, spec: Any) -> None:
    classes = [{"name": "chat", "ttft": {"target": "9s"}, "tpot": "2s"}, REASON]

    async def story() -> None:
        async with chain(gateway, spec(classes=classes, replicas=1)) as world:
            given: Any = {"base_url": f"{world.url}/v1", "api_key": "x", "max_retries": 0}
            with openai.OpenAI(**given) as client:
                num_told = await asyncio.to_thread(everything, client)
            async with openai.AsyncOpenAI(**given) as later:
                num_told += await everything_async(later)
            await world.until(lambda: not world.core.open)
            ledger = world.core.ledger
            demands = [ledger.last_minute(name) for name in ("chat", "reason")]
            assert sum(d.output_tokens for d in demands) == num_told
            assert world.judged("chat") == (8, 8, 8, 8)
            assert world.judged("reason") == (2, 2, 2, 2)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ],
)
def test_a_refusal_comes_back_as_the_replica_says_it(
    gateway: Any, spec: Any, fields: Any, param: str
) -> None:
    async def story() -> None:
        async with chain(gateway, spec(replicas=1)) as world:
            answer = await world.ask(**fields)
            assert answer.status == 400
            assert answer.json["error"]["param"] == param
            assert world.judged() == (0, 0, 0, 0)

    asyncio.run(story())


def test_tools_count_as_part_of_the_prompt() -> None:
    def text(**fields: Any) -> str:
        return peek(json.dumps({"messages": ASK, **fields}).encode()).text

    assert text() == "hi"
    assert text(tools=TOOLS) == json.dumps(TOOLS) + "hi"
    assert text(tools=TOOLS, tool_choice="none") == "hi"
    assert text(tools="odd") == text(tools=[]) == "hi"
