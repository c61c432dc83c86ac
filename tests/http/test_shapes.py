"""What a body may ask of its answer's shape, and how earlier calls are read."""

import json
from typing import Any

import pytest

from sloserve.errors import BadInput
from sloserve.http.bodies import ChatBody, CompletionBody, parse, turns

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**fields: Any) -> ChatBody:
    messages = fields.pop("messages", [{"role": "user", "content": "hi"}])
    return parse(ChatBody, json.dumps({"messages": messages, **fields}).encode())


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def asked(messages: Any) -> list[dict[str, Any]]:
    return turns(chat(messages=messages).messages)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [{"type": "magic"}]}, "tools[0].type: got 'magic', allowed: 'function'"),
        ({"tools": [tool("a b")]}, "tools[0].function.name: got 'a b', allowed: 1 to 64"),
        ({"tools": [tool("f"), tool("f")]}, "tools[1]: there are two functions named 'f'"),
        ({"tools": [tool("f", parameters=5)]}, "tools[0].function.parameters: allowed: a JSON"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools: got ["),
        ({"tool_choice": "auto"}, "tool_choice: is only allowed when tools are given"),
        ({"tools": [tool("f")], "tool_choice": "any"}, "tool_choice: got 'any', allowed: 'none'"),
        ({"tools": [tool("f")], "tool_choice": named("g")}, "tool_choice.function.name: got 'g'"),
        ({"tools": [tool("f")], "tool_choice": {"type": "x"}}, "tool_choice: got {'type': 'x'}"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema: is"),
        ({"guided_json": "{"}, "guided_json: is no JSON: Expecting property name"),
        ({"guided_json": [1]}, "guided_json: allowed: a JSON schema, which is an object"),
        ({"guided_choice": []}, "guided_choice: got 0, allowed: 1 to 4096 strings"),
        ({"guided_choice": ["a", ""]}, "guided_choice: allowed: a list of strings, none"),
        ({"guided_regex": ""}, "guided_regex: got ''"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex: got 5"),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag: is not served; allowed: json, regex",
        ),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "response_format: and guided_regex ask for different shapes; allowed: one of them",
        ),
    ],
)
def test_a_bad_wish_is_named_with_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        chat(**fields)
    assert caught.value.message.startswith(message)
    assert caught.value.field is not None
    assert caught.value.field.split("[")[0].split(".")[0] in fields


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_schema_may_be_asked_for_in_several_ways(fields: dict[str, Any], field: str) -> None:
    for body in (
        chat(**fields),
        parse(CompletionBody, json.dumps({"prompt": "x"} | fields).encode()),
    ):
        shape = body.shape()
        assert shape is not None
        assert (shape.schema, shape.field) == (SCHEMA, field)


def test_only_a_strict_schema_must_be_enforced_to_the_last_word() -> None:
    def lenient(**fields: Any) -> bool:
        shape = chat(**fields).shape()
        assert shape is not None
        return shape.lenient

    def formatted(**more: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, **more}}

    assert lenient(response_format=formatted())
    assert lenient(response_format=formatted(strict=False))
    assert not lenient(response_format=formatted(strict=True))
    assert not lenient(guided_json=SCHEMA)


def test_no_wish_is_no_shape() -> None:
    for fields in ({}, {"response_format": {"type": "text"}}, {"guided_json": None}):
        assert chat(**fields).shape() is None


def test_earlier_calls_reach_the_template_with_their_arguments_as_objects() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    told = asked(
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "7"},
        ]
    )
    assert told[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert told[0]["tool_calls"][0]["id"] == "call_1"
    assert told[0]["content"] == ""
    assert told[1] == {"role": "tool", "tool_call_id": "call_1", "content": "7"}


@pytest.mark.parametrize(
    ("calls", "where"),
    [
        ("x", "messages[0].tool_calls"),
        ([5], "messages[0].tool_calls[0]"),
        ([{"function": {"arguments": "{}"}}], "messages[0].tool_calls[0]"),
        ([tool("f", arguments="{")], "messages[0].tool_calls[0].function.arguments"),
        ([tool("f", arguments="[1]")], "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_earlier_calls_that_are_none_are_refused(calls: Any, where: str) -> None:
    with pytest.raises(BadInput) as caught:
        asked([{"role": "assistant", "tool_calls": calls}])
    assert caught.value.field == where


def test_a_tool_is_given_to_the_template_as_it_came() -> None:
    given = tool("f", description="does it", examples=["x"])
    body = chat(tools=[given])
    assert body.tools is not None
    told = body.tools[0].for_template()
    told["function"].pop("parameters")  # always there, for templates that read it
    assert told == given
