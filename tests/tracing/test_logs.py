"""What the whole chain logs: ids on every line, one line per decision, no keys and no prompts."""

import asyncio
import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sloserve import logs
from sloserve.gateway.keys import Key

Make = Callable[..., contextlib.AbstractAsyncContextManager[Any]]

SECRET = "sk-verysecretkey"
PROMPT = "thesentinelprompt"
KEYS = (Key("team", hashlib.sha256(SECRET.encode()).digest()),)
AUTHORIZED = {"authorization": f"Bearer {SECRET}"}
REASONS_TO_ASK = ("declined", "degraded", "deferred", "refused")


class Written:
    """Everything logged since."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every line, parsed."""
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, part: str, *messages: str) -> list[dict[str, Any]]:
        """The lines of gateway or frontend with one of these messages."""
        return [
            line
            for line in self.lines
            if line["logger"].startswith(f"sloserve.{part}") and line["message"] in messages
        ]


@pytest.fixture
def written() -> Iterator[Written]:
    """The log as JSON lines, of all loggers, with all that is told for debugging."""
    told, root = Written(), logging.getLogger()
    handler = logging.StreamHandler(told.stream)
    handler.setFormatter(logs.JsonLines())
    root.addHandler(handler)
    before = root.level
    root.setLevel(logging.DEBUG)
    yield told
    root.removeHandler(handler)
    root.setLevel(before)


def test_a_requests_id_is_on_every_line_of_gateway_and_replica(
    chain: Make, written: Written
) -> None:
    async def story() -> None:
        async with chain() as it:
            headers = {"x-request-id": "req-7", "x-slo-class": "soft"}
            answer = await it.ask(headers=headers, max_tokens=3)
            assert answer.status == 200
            assert answer.headers["x-request-id"] == "req-7"
            minted = (await it.ask(max_tokens=3)).headers["x-request-id"]
            await it.all_told()
            for message in ("degraded", "ended"):
                for part in ("gateway", "frontend"):
                    ids = [line["request_id"] for line in written.of(part, message)]
                    assert "req-7" in ids
                    assert set(ids) <= {"req-7", minted}
            (trace,) = {line["trace_id"] for line in written.lines if
                        line.get("request_id") == "req-7"}  # fmt: skip
            assert len(trace) == 32

    asyncio.run(story())


def test_a_decline_is_one_line_with_what_binds_on_each_side(chain: Make, written: Written) -> None:
    async def story() -> None:
        async with chain() as it:
            answer = await it.ask(headers={"x-slo-class": "impossible"})
            assert answer.status == 429
            await it.all_told()
            (there,) = written.of("frontend", *REASONS_TO_ASK)
            assert there["message"] == "declined"
            assert there["level"] == "info"
            assert there["slo_class"] == "impossible"
            assert there["reason"] == "TTFT"
            assert there["prompt_tokens"] > 0
            assert there["detail"]
            (here,) = written.of("gateway", *REASONS_TO_ASK)
            assert here["message"] == "declined"
            assert here["reason"] == "TTFT"
            assert here["retry_after_s"] == int(answer.headers["retry-after-ms"]) / 1e3 > 0
            assert here["prompt_tokens"] == there["prompt_tokens"]
            assert here["replica"] == "r0"
            assert here["request_id"] == there["request_id"] == answer.headers["x-request-id"]

    asyncio.run(story())


def test_an_answer_in_time_is_told_for_debugging_only_and_nothing_per_token(
    chain: Make, written: Written
) -> None:
    async def story() -> None:
        async with chain() as it:
            before = len(written.lines)
            await it.ask(max_tokens=100, stream=True)
            await it.all_told()
            own = [
                line
                for line in written.lines[before:]
                if line["logger"].startswith(("sloserve.gateway", "sloserve.frontend"))
            ]
            assert {line["level"] for line in own} == {"debug"}
            assert [line["message"] for line in own].count("ended") == 2
            assert len(own) == 4
            (there,) = written.of("frontend", "ended")
            assert there["output_tokens"] == 100
            assert there["finish_reason"] == ["length"]
            assert there["preemptions"] == 0

    asyncio.run(story())


def test_replicas_that_come_and_go_and_new_manifests_are_told(
    chain: Make, written: Written, spec: Callable[[int], Any]
) -> None:
    async def story() -> None:
        async with chain() as it:
            (ready,) = written.of("gateway", "replica is ready")
            assert ready["replica"] == "r0"
            it.replicas[0].drain()
            await it.until(lambda: bool(written.of("gateway", "replica is draining")))
            it.replicas[0].draining = False
            await it.until(lambda: len(written.of("gateway", "replica is ready")) == 2)
            it.core.apply(spec(2))
            (applied,) = written.of("gateway", "manifest applied")
            assert applied["generation"] == 2
            assert applied["classes"] == ["chat", "impossible", "soft"]

    asyncio.run(story())


def test_no_key_and_no_prompt_is_ever_logged(chain: Make, written: Written) -> None:
    message = {"role": "user", "content": PROMPT}
    said: dict[str, Any] = {"model": "assistant", "max_tokens": 3, "messages": [message]}
    bodies: list[Any] = [
        {**said, "temperature": 9},
        {**said, "messages": [{"role": PROMPT, "content": PROMPT}]},
        {"model": "assistant", "messages": PROMPT},
        {"model": PROMPT, "messages": []},
        {**said, "stop": {PROMPT: 1}},
        {**said, PROMPT: PROMPT},
        [PROMPT],
        PROMPT,
    ]

    async def story() -> None:
        async with chain(keys=KEYS) as it:
            for headers in (
                AUTHORIZED,
                {**AUTHORIZED, "x-slo-class": "impossible"},
                {**AUTHORIZED, "x-slo-class": "soft"},
                {"authorization": f"Bearer {SECRET}x"},
                {"authorization": SECRET},
            ):
                for stream in (True, False):
                    await it.ask(headers=headers, prompt=PROMPT, stream=stream, max_tokens=4)
            for body in bodies:
                await it.post(body, AUTHORIZED)
            async with it.session.post(
                f"{it.url}/v1/chat/completions",
                data=f'{{"messages": "{PROMPT}'.encode(),
                headers={**AUTHORIZED, "content-type": "application/json"},
            ) as response:
                assert response.status == 400
            await it.all_told()

    asyncio.run(story())
    assert len(written.of("gateway", *REASONS_TO_ASK)) >= 4
    assert PROMPT not in written.text
    assert SECRET not in written.text
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in written.text


def test_an_engine_that_breaks_does_not_tell_what_it_was_asked(
    chain: Make, written: Written
) -> None:
    async def story() -> None:
        async with chain() as it:
            scheduler = it.replicas[0].loaded.engine.scheduler

            def broken(now_s: float) -> None:
                raise RuntimeError("the planner is out of its mind")

            scheduler.schedule = broken
            answer = await it.ask(prompt=PROMPT, max_tokens=3)
            assert answer.status == 500
            await it.all_told()

    asyncio.run(story())
    (line,) = written.of("frontend", "answer broken")
    assert line["level"] == "warning"
    assert line["request_id"]
    assert PROMPT not in written.text


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x4FFF), min_size=4, max_size=20),
    st.sampled_from(["content", "role", "stop", "user", "model"]),
)
def test_no_field_of_a_body_finds_its_way_into_a_log(
    written: Written, secret: str, field: str
) -> None:
    from sloserve.errors import SloserveError
    from sloserve.frontend.telling import refused
    from sloserve.http.bodies import ChatBody, parse
    from sloserve.http.errors import refusal
    from sloserve.http.tracing import NO_SPAN

    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    if field in ("content", "role"):
        body["messages"][0][field] = {secret: secret} if field == "content" else secret
    else:
        body[field] = {secret: secret}
    try:
        parse(ChatBody, json.dumps(body).encode())
    except SloserveError as error:
        refused(NO_SPAN, refusal(error))
    assert secret not in written.text
