"""What users and tools see over HTTP."""

import asyncio
import contextlib
import json
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloserve.errors import BadInput
from sloserve.gateway.peek import peek
from sloserve.gateway.settings import Settings

Make = Any
"""A builder from conftest."""


def test_the_class_comes_from_the_header_and_targets_only_loosen(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            told = (await world.ask(headers={"x-slo-class": "strict"})).headers
            assert (told["x-slo-class"], told["x-slo-ttft-ms"]) == ("strict", "500")
            told = (await world.ask(headers={"x-slo-ttft-ms": "9000"})).headers
            assert told["x-slo-ttft-ms"] == "9000"
            told = (await world.ask(headers={"x-llm-d-slo-ttft-ms": "10"})).headers
            assert told["x-slo-ttft-ms"] == "5000"
            assert "ttft clamped from 10 ms to 5000 ms" in told["x-slo-note"]
            told = (await world.ask(headers={"x-slo-ttft-ms": "-3"})).headers
            assert told["x-slo-ttft-ms"] == "5000"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("headers", "body", "status", "param", "words"),
    [
        ({"x-slo-class": "gold"}, {}, 400, "x-slo-class", "known: chat, strict"),
        ({"x-slo-ttft-ms": "fast"}, {}, 400, "x-slo-ttft-ms", "milliseconds"),
        ({"x-slo-tpot-ms": "nan"}, {}, 400, "x-slo-tpot-ms", "milliseconds"),
        ({}, {"model": "gpt"}, 404, "model", "served: assistant"),
        ({}, {"model": 7}, 400, "model", "a string"),
    ],
)
def test_bad_input_is_refused_in_openais_shape(
    gateway: Make,
    replica: Make,
    headers: dict[str, str],
    body: dict[str, Any],
    status: int,
    param: str,
    words: str,
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            answer = await world.ask(headers=headers, **body)
            assert answer.status == status
            error = answer.json["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert error["param"] == param
            assert words in error["message"]
            assert not world.replicas[0].asked
            assert world.judged() == (0, 0, 0, 0)

    asyncio.run(story())


def test_bodies_that_are_no_json_objects_or_too_long_are_refused(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        async with gateway(replica(), settings=Settings(max_body_bytes=1000, poll_s=0.02)) as world:
            for body in (b"", b"{", b"[]", b"\xff\xfe", b'"x"', b"[" * 900):
                assert (await world.post("/v1/completions", body)).status == 400
            answer = await world.post("/v1/completions", b'{"prompt": "' + b"x" * 1000 + b'"}')
            assert answer.status == 413
            assert answer.json["error"]["code"] == "request_too_large"

    asyncio.run(story())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "prompt", "content", "model", "n", "stream", "text", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def test_malformed_bodies_never_give_a_5xx(gateway: Make, replica: Make, act: Make) -> None:
    async def send(world: Make, raw: bytes) -> None:
        for path in ("/v1/chat/completions", "/v1/completions"):
            answer = await world.post(path, raw)
            assert 400 <= answer.status < 500
            assert answer.json["error"].keys() >= {"message", "type", "param", "code"}

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        refusing = replica(default=act(status=400, decision=""))
        world = runner.run(stack.enter_async_context(gateway(refusing)))

        @settings(max_examples=40, deadline=None)
        @given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary())
        def bodies(raw: bytes) -> None:
            runner.run(send(world, raw))

        bodies()
        runner.run(stack.aclose())


@given(JSON)
def test_a_peek_never_fails_but_with_bad_input(body: Any) -> None:
    try:
        seen = peek(json.dumps(body).encode())
    except BadInput:
        return
    assert seen.num_choices >= 0
    assert seen.num_ids >= 0


def test_a_peek_measures_prompts_of_every_kind() -> None:
    def of(**body: Any) -> tuple[str, int, int]:
        seen = peek(json.dumps(body).encode())
        return seen.text, seen.num_ids, seen.num_choices

    assert of(prompt="abc") == ("abc", 0, 1)
    assert of(prompt=["ab", "c"], n=2) == ("abc", 0, 4)
    assert of(prompt=[1, 2, 3]) == ("", 3, 1)
    assert of(prompt=[[1, 2], [3]]) == ("", 3, 2)
    parts = [{"type": "text", "text": "bc"}, {"type": "image_url"}]
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": parts}]
    assert of(messages=messages, n=3) == ("abc", 0, 3)


def test_paths_and_methods_that_are_not_there_answer_like_openai(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            assert (await world.get("/v1/nothing")).json["error"]["code"] == "not_found"
            assert (await world.get("/v1/chat/completions")).status in (404, 405)
            assert (await world.post("/v1/models", b"{}")).status == 405
            assert (await world.get("/metrics")).status == 404  # only inside

    asyncio.run(story())


def test_models_health_and_the_inside_port(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            listed = (await world.get("/v1/models")).json
            assert [m["id"] for m in listed["data"]] == ["assistant"]
            for path in ("/health", "/ready"):
                assert (await world.get(path)).status == 200
                assert (await world.internal(path)).status == 200
            text = (await world.internal("/metrics")).text
            for slo_class in ("chat", "strict"):
                labels = f'model="assistant",service="assistant",slo_class="{slo_class}"'
                assert f"sloserve_slo_requests_total{{{labels}}} 0.0" in text
            assert 'sloserve_gateway_replicas{service="assistant",state="ready"} 1.0' in text
            report = (await world.internal("/report")).json
            assert report["service"] == "assistant"
            assert report["replicas"][0]["state"] == "ready"
            assert report["classes"][0]["frontier"] == {"minTokens": 1, "maxTokens": 10_000}
            assert [c["name"] for c in report["sloClasses"]] == ["chat", "strict"]

    asyncio.run(story())


def test_the_openai_client_works_unchanged(gateway: Make, replica: Make) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]

    def in_thread(url: str) -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            whole = client.chat.completions.create(model="assistant", messages=messages)
            stream = client.completions.create(model="assistant", prompt="x", stream=True)
            assert [m.id for m in client.models.list()] == ["assistant"]
            return whole.choices[0].message.content or "", "".join(
                c.choices[0].text for c in stream
            )

    async def story() -> None:
        async with gateway(replica()) as world:
            assert await asyncio.to_thread(in_thread, world.url) == ("w0 w1 w2 ", "w0 w1 w2 ")
            async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="any") as client:
                stream = await client.chat.completions.create(
                    model="assistant", messages=messages, stream=True
                )
                got = [c.choices[0].delta.content or "" async for c in stream]
                assert "".join(got) == "w0 w1 w2 "
                done = await client.completions.create(model="assistant", prompt="x")
                assert done.choices[0].text == "w0 w1 w2 "
                with pytest.raises(openai.NotFoundError):
                    await client.completions.create(model="gpt", prompt="x")
            await world.until(lambda: not world.core.open)
            assert world.judged() == (4, 4, 4, 4)

    asyncio.run(story())


def test_the_openai_client_sees_a_lost_replica_as_an_error(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            world.replicas[0].acts.append(act(tokens=4, die_after=2))
            async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="any") as client:
                stream = await client.completions.create(model="assistant", prompt="x", stream=True)
                with pytest.raises(openai.APIError, match="lost in the middle"):
                    async for _ in stream:
                        pass

    asyncio.run(story())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_tls_from_two_files(gateway: Make, replica: Make, tmp_path: Path) -> None:
    cert, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    command = [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key]
    subprocess.run([*command, "-out", cert], check=True, capture_output=True)

    async def story() -> None:
        async with gateway(replica(), tls=(cert, key)) as world:
            assert world.url.startswith("https://")
            trust = ssl.create_default_context(cafile=cert)
            async with world.session.get(f"{world.url}/health", ssl=trust) as response:
                assert response.status == 200
            body = {"messages": [], "stream": True}
            url = f"{world.url}/v1/chat/completions"
            async with world.session.post(url, json=body, ssl=trust) as response:
                assert (await response.text()).endswith("data: [DONE]\n\n")

    asyncio.run(story())


def test_a_draining_gateway_is_not_ready_and_closes_connections(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            assert "connection" not in (await world.ask(stream=True)).headers
            world.core.draining = True
            ready = await world.get("/ready")
            assert ready.status == 503
            assert ready.headers["connection"] == "close"
            answer = await world.ask(stream=True)
            assert answer.status == 200
            assert answer.headers["connection"] == "close"

    asyncio.run(story())
