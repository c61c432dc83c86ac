"""Answers of a given shape, through the official client."""

import asyncio
import contextlib
import json
import re
import sys
import threading
from dataclasses import replace
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sloserve.errors import BadInput, Unavailable
from sloserve.frontend import grammars as module
from sloserve.frontend.grammars import Grammars, make_grammars
from sloserve.grammar.constraint import Constraint, Kind
from sloserve.grammar.matcher import Grammar

ASK: list[Any] = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}


@pytest.fixture
def client(shared: Any) -> Any:
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="x", max_retries=0) as made:
        yield made


def fits(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"city", "degrees"} and isinstance(value["degrees"], int)


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sim",
        messages=ASK,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True},
        },
    )
    assert fits(answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_of_several_answers_keeps_it_in_each(client: openai.OpenAI) -> None:
    texts, reasons = {0: "", 1: "", 2: ""}, dict[int, str]()
    for chunk in client.chat.completions.create(
        model="sim", messages=ASK, n=3, stream=True, logprobs=True, seed=4,
        extra_body={"guided_json": SCHEMA},
    ):  # fmt: skip
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        assert choice.logprobs is not None
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert all(fits(text) for text in texts.values())
    assert reasons == {0: "stop", 1: "stop", 2: "stop"}


def test_the_client_s_own_parsing_of_a_model_class_works(client: openai.OpenAI) -> None:
    class Weather(BaseModel):
        city: str
        degrees: int

    parsed = client.chat.completions.parse(model="sim", messages=ASK, response_format=Weather)
    assert isinstance(parsed.choices[0].message.parsed, Weather)


@pytest.mark.parametrize(
    ("wish", "pattern"),
    [
        ({"guided_regex": r"\d{3}-[a-c]+"}, r"\d{3}-[a-c]+"),
        ({"guided_choice": ["red", "green"]}, "red|green"),
        ({"guided_grammar": 'start: "a" "b"+'}, "ab+"),
        ({"guided_grammar": 'root ::= "x" [0-9] "y"'}, "x[0-9]y"),
        ({"structured_outputs": {"regex": "[ab]{2}"}}, "[ab]{2}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"grammar": 'start: "q"'}}, "q"),
        ({"structured_outputs": {"json_object": True}}, r"\{.*\}"),
        ({"response_format": {"type": "json_object"}}, r"\{.*\}"),
    ],
)
def test_every_kind_of_shape_is_kept_in_chat_and_completions(
    client: openai.OpenAI, wish: Any, pattern: str
) -> None:
    chat = client.chat.completions.create(model="sim", messages=ASK, extra_body=wish)
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")
    assert chat.choices[0].finish_reason == "stop"
    plain = client.completions.create(model="sim", prompt="x", max_tokens=30, extra_body=wish)
    assert re.fullmatch(pattern, plain.choices[0].text)
    assert plain.choices[0].finish_reason == "stop"


def test_a_shape_that_is_complete_ends_the_answer_whatever_else_was_asked(
    client: openai.OpenAI,
) -> None:
    answer = client.completions.create(
        model="sim",
        prompt="x",
        max_tokens=30,
        extra_body={"guided_choice": ["red"], "ignore_eos": True, "min_tokens": 20},
    )
    assert answer.choices[0].text == "red"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3  # no token spent on an end


def test_stop_strings_and_max_tokens_still_end_an_answer(client: openai.OpenAI) -> None:
    short = client.completions.create(
        model="sim", prompt="x", max_tokens=2, extra_body={"guided_choice": ["red"]}
    )
    assert (short.choices[0].text, short.choices[0].finish_reason) == ("re", "length")
    stopped = client.completions.create(
        model="sim", prompt="x", max_tokens=9, stop="e", extra_body={"guided_choice": ["red"]}
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("r", "stop")


@pytest.mark.parametrize(
    ("wish", "param", "words"),
    [
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_json": {"type": "number?"}}, "guided_json", "Invalid type: number?"),
        ({"guided_json": {"not": {}}}, "guided_json", "not"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", 'unknown name: "nothing"'),
        ({"guided_grammar": "what"}, "guided_grammar", "Expected ::="),
        ({"guided_regex": "a" * 262_145}, "guided_regex", "262145 characters, allowed: at most"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "schema": {"if": {}}, "strict": True}}},
            "response_format.json_schema.schema", "if",
        ),
    ],
)  # fmt: skip
def test_a_shape_that_can_not_be_kept_is_refused_with_the_reason(
    shared: Any, wish: Any, param: str, words: str
) -> None:
    answer = shared.post("/v1/completions", json={"prompt": "x", **wish})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert "<state>" not in error["message"]


def test_a_schema_that_is_not_strict_is_kept_as_far_as_it_can_be(client: openai.OpenAI) -> None:
    schema = {**SCHEMA, "if": {"properties": {"city": {"const": "x"}}}}
    wish: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
    answer = client.chat.completions.create(model="sim", messages=ASK, response_format=wish)
    assert fits(answer.choices[0].message.content or "")


def test_without_the_extra_it_says_what_to_install(running: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sloserve.grammar.compiler", None)
    served = running.replica.loaded
    without = make_grammars(served.tokenizer, served.facts)
    monkeypatch.setattr(running.replica, "_served", replace(served, grammars=without))
    answer = running.post("/v1/completions", json={"prompt": "x", "guided_regex": "a"})
    assert answer.status_code == 400
    assert "pip install 'sloserve[grammar]'" in answer.json()["error"]["message"]
    forced = {"messages": ASK, "tools": [{"type": "function", "function": {"name": "f"}}]}
    answer = running.post("/v1/chat/completions", json={**forced, "tool_choice": "required"})
    assert answer.json()["error"]["param"] == "tool_choice"
    assert running.post("/v1/chat/completions", json=forced).status_code == 200


class Slow:
    """A compiler that takes as long as the test wants."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.texts: list[str] = []  # it was begun with

    def cached(self, constraint: Constraint) -> Grammar | None:
        return None

    def compile(self, constraint: Constraint) -> Grammar:
        self.texts.append(constraint.text)
        self.begun.release()
        self.go.wait(60)
        raise BadInput("done", field=constraint.field)


def test_a_grammar_that_takes_too_long_is_refused_and_does_not_stop_the_loop() -> None:
    slow = Slow()

    async def main() -> None:
        grammars = Grammars(slow, max_compile_s=0.05)
        with pytest.raises(BadInput, match="takes longer to compile"):
            await grammars.compile(Constraint(Kind.REGEX, "a", "guided_regex"))

    try:
        asyncio.run(main())
    finally:
        slow.go.set()


def test_a_grammar_whose_turn_does_not_come_is_not_called_too_large() -> None:
    slow = Slow()

    async def main() -> None:
        grammars = Grammars(slow, max_wait_s=0.05)

        async def occupy(text: str) -> None:
            with contextlib.suppress(BadInput):
                while True:
                    with contextlib.suppress(Unavailable):  # its thread was slow to start
                        await grammars.compile(Constraint(Kind.REGEX, text, "guided_regex"))

        work = [asyncio.create_task(occupy(str(i))) for i in range(module.NUM_THREADS)]
        for _ in work:
            await asyncio.to_thread(slow.begun.acquire)
        with pytest.raises(Unavailable, match="could not begin"):
            await grammars.compile(Constraint(Kind.REGEX, "one more", "guided_regex"))
        slow.go.set()
        await asyncio.gather(*work)
        await occupy("later")
        assert "one more" not in slow.texts  # nor is it begun with afterwards

    try:
        asyncio.run(main())
    finally:
        slow.go.set()


def test_too_many_grammars_at_once_are_sent_away() -> None:
    slow = Slow()

    async def main() -> None:
        grammars = Grammars(slow)
        work = [
            asyncio.create_task(grammars.compile(Constraint(Kind.REGEX, str(i), "guided_regex")))
            for i in range(module.MAX_WAITING)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="64 grammars wait"):
            await grammars.compile(Constraint(Kind.REGEX, "one more", "guided_regex"))
        slow.go.set()
        ended = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(error, BadInput) for error in ended)

    asyncio.run(main())


def test_a_grammar_that_fails_on_the_way_ends_its_own_answer_only(running: Any) -> None:
    def stray(row: Any) -> bool:
        if row.matcher is not None and row.sampling.seed == 13:
            row.matcher.accept(0)  # as if a token outside had been drawn
        return False

    running.runner.breaks = stray
    wish = {"prompt": "x", "guided_regex": "[a-z]{5}", "max_tokens": 9}
    failed = running.post("/v1/completions", json={**wish, "seed": 13})
    assert failed.status_code == 500
    assert "grammar can't be followed any further" in failed.json()["error"]["message"]
    assert running.post("/v1/completions", json=wish).status_code == 200
    assert running.scheduler.num_running == 0
    running.scheduler.check_integrity()


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
SCHEMAS = st.recursive(
    st.sampled_from(
        [{}, {"type": "string"}, {"type": "integer"}, {"enum": [1, "a"]}, {"const": None},
         {"type": "strange"}, {"$ref": "#/$defs/x"}, {"pattern": "("}, {"type": ["null", "array"]}]
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.text(max_size=3), inner, max_size=3),
            "items": inner, "anyOf": st.lists(inner, max_size=2), "not": inner,
            "required": st.lists(st.text(max_size=3), max_size=2), "minLength": st.integers(),
            "additionalProperties": inner | st.booleans(), "maximum": st.floats(), "$defs": ODD,
        },
    ),
    max_leaves=6,
)  # fmt: skip
GRAMMARS = st.text(st.sampled_from('ab"/[](){}|*+?:\\ \nstart<>%=1'), max_size=20)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    wish=st.fixed_dictionaries({"guided_json": SCHEMAS})
    | st.fixed_dictionaries({"guided_regex": GRAMMARS})
    | st.fixed_dictionaries({"guided_grammar": GRAMMARS.map(lambda text: f"start: {text}")})
    | st.fixed_dictionaries({"guided_choice": st.lists(st.text(max_size=3))})
    | st.fixed_dictionaries({"structured_outputs": st.dictionaries(
        st.sampled_from(["json", "regex", "choice", "grammar", "json_object"]), ODD)})
    | st.fixed_dictionaries({"response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["json_schema", "json_object", "text", "x"])},
        optional={"json_schema": st.fixed_dictionaries({"schema": SCHEMAS | ODD}) | ODD})}),
)  # fmt: skip
def test_odd_shapes_never_make_a_5xx(shared: Any, wish: dict[str, Any]) -> None:
    answer = shared.post(
        "/v1/completions", content=json.dumps({"prompt": "x", "max_tokens": 3, **wish})
    )
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
