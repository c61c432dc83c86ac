"""Calls as models really write them, whole and cut anywhere."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sloserve.tools.formats import FORMATS
from sloserve.tools.pieces import CallArguments, CallStart, Content

NAMES = ("get_weather", "add")
Told = tuple[str, list[tuple[str, str]]]

# Outputs in the form that the models' own templates and cards show.
RECORDED: list[tuple[str, str, Told]] = [
    (
        "hermes",  # Qwen 2.5 and 3
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        ("", [("get_weather", '{"city": "Paris"}')]),
    ),
    (
        "hermes",
        "Let me look.\n\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "c"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}\n</tool_call>',
        (
            "Let me look.",
            [
                ("get_weather", '{"city": "Paris", "unit": "c"}'),
                ("add", '{"a": 1, "b": [2, {"c": "}"}]}'),
            ],
        ),
    ),
    (
        "hermes",  # Hermes 2 Pro puts the arguments first, and closes on one line
        '<tool_call>{"arguments": {"a": "</tool_call> \\" {"}, "name": "add"}</tool_call>',
        ("", [("add", '{"a": "</tool_call> \\" {"}')]),
    ),
    (
        "llama3",  # 3.1 to 3.3, JSON based
        '{"name": "get_weather", "parameters": {"city": "San Francisco"}}',
        ("", [("get_weather", '{"city": "San Francisco"}')]),
    ),
    (
        "llama3",
        '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": "1"}}; '
        '{"name": "get_weather", "parameters": {}}',
        ("", [("add", '{"a": "1"}'), ("get_weather", "{}")]),
    ),
    (
        "mistral",  # 7B v0.3, Nemo, Large 2
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "add", "arguments": {"a": 1}}]',
        ("", [("get_weather", '{"city": "Paris"}'), ("add", '{"a": 1}')]),
    ),
    (
        "mistral-args",  # Small 3.2, Magistral, Devstral
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[ARGS]{"a": {"b": "]"}}',
        ("", [("get_weather", '{"city": "Paris"}'), ("add", '{"a": {"b": "]"}}')]),
    ),
    (
        "mistral-args",
        'I will. [TOOL_CALLS]add[CALL_ID]a1B2c3D4e[ARGS]{"a": 1}',
        ("I will.", [("add", '{"a": 1}')]),
    ),
    ("mistral", '[TOOL_CALLS]add{"a": 1}', ("", [("add", '{"a": 1}')])),
    # No arguments, or as a string, or as null.
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', ("", [("add", "{}")])),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", [("add", '{"a": 1}')]),
    ),
    ("llama3", '{"name": "add", "parameters": null}', ("", [("add", "{}")])),
    # What is no call is text, to the letter.
    ("hermes", "1 < 2 and <tool_cal is no tag\n", ("1 < 2 and <tool_cal is no tag\n", [])),
    (
        "hermes",
        "<tool_call>\nnothing\n</tool_call> x",
        ("<tool_call>\nnothing\n</tool_call> x", []),
    ),
    ("hermes", '<tool_call>{"names": 1}', ('<tool_call>{"names": 1}', [])),
    ("llama3", "The weather is fine; {}", ("The weather is fine; {}", [])),
    ("llama3", '{"answer": {"name": "add"}}', ('{"answer": {"name": "add"}}', [])),
    ("llama3", '{"name": "Bob", "age": 5}', ('{"name": "Bob", "age": 5}', [])),
    ("llama3", "<|python_tag|>print(1)", ("print(1)", [])),
    ("llama3", " {", (" {", [])),
    ("mistral", "[TOOL_CALLS] sorry, no", ("[TOOL_CALLS] sorry, no", [])),
    (
        "mistral",  # the first marker was none, the second is
        'a [TOOL_CALLS]: [TOOL_CALLS]add{"a": 1}',
        ("a [TOOL_CALLS]:", [("add", '{"a": 1}')]),
    ),
    ("mistral", "[TOOL_CALLS] [1, 2]", ("[TOOL_CALLS] [1, 2]", [])),
    ("mistral", "[TOOL_CALLS] [ ", ("[TOOL_CALLS] [ ", [])),
    ("mistral", '[TOOL_CALLS][{"a": 1}]', ('[TOOL_CALLS][{"a": 1}]', [])),
    ("mistral", '[TOOL_CALLS] {"a"', ('[TOOL_CALLS] {"a"', [])),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "add"}, {"a": 1}, 2]',
        (', {"a": 1}, 2]', [("add", "{}")]),
    ),
    ("mistral", "see [1] and [TOOL", ("see [1] and [TOOL", [])),
    ("mistral", "so\n[TOOL_CALLS] and", ("so\n[TOOL_CALLS] and", [])),
    ("hermes", "so\n\n<tool_call> and", ("so\n\n<tool_call> and", [])),
    # Cut off by max_tokens: what came is told.
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1', ("", [("add", '{"a": 1')])),
    ("llama3", '{"name": "add", "parameters": {"a', ("", [("add", '{"a')])),
    ("mistral-args", '[TOOL_CALLS]add[ARGS]{"a": [', ("", [("add", '{"a": [')])),
]


def told(how: str, parts: Sequence[str]) -> Told:
    """Content and calls of an answer that comes in these parts."""
    parser = FORMATS[how].new_parser(NAMES)
    pieces = [piece for part in parts for piece in parser.push(part)] + parser.finish()
    content, calls = "", list[tuple[str, str]]()
    for piece in pieces:
        match piece:
            case Content(text):
                assert text
                content += text
            case CallStart(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case CallArguments(index, text):
                assert index == len(calls) - 1
                assert text
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    assert parser.num_calls == len(calls)
    return content, calls


@pytest.mark.parametrize(("how", "text", "expected"), RECORDED)
def test_recorded_answers_are_read_right_at_once_and_letter_by_letter(
    how: str, text: str, expected: Told
) -> None:
    assert told(how, [text]) == expected
    assert told(how, list(text)) == expected


@given(data=st.data(), case=st.sampled_from(RECORDED))
def test_where_an_answer_is_cut_makes_no_difference(data: st.DataObject, case: Any) -> None:
    how, text, expected = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert told(how, parts) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    how=st.sampled_from(sorted(FORMATS)),
    calls=st.lists(
        st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=5), JSON)),
        min_size=1,
        max_size=3,
    ),
    size=st.integers(1, 9),
    ascii_only=st.booleans(),
)
def test_calls_written_in_a_format_are_read_back(
    how: str, calls: list[tuple[str, Any]], size: int, ascii_only: bool
) -> None:
    form = FORMATS[how]
    written = []
    for name, arguments in calls:
        text = json.dumps(arguments, ensure_ascii=ascii_only)
        written.append("".join((*form.before, name, *form.after, text, *form.close)))
    answer = "".join(form.first) + "".join(form.between).join(written) + "".join(form.last)
    content, found = told(how, [answer[i : i + size] for i in range(0, len(answer), size)])
    assert content == ""
    assert [(name, json.loads(text)) for name, text in found] == calls


@given(how=st.sampled_from(sorted(FORMATS)), text=st.text())
def test_any_text_without_a_marker_comes_out_as_it_is(how: str, text: str) -> None:
    assume(not any(marker in text for marker in FORMATS[how].markers))  # it does draw them
    assert told(how, list(text)) == (text, [])


@given(
    how=st.sampled_from(sorted(FORMATS)),
    parts=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{", "}",
             '"name"', ":", '"add"', ",", '"arguments"', "[", "]", " ", "\n", '"', "\\", ";", "x"]
        ),
        max_size=14,
    ),
)  # fmt: skip
def test_whatever_comes_nothing_breaks_and_cuts_make_no_difference(
    how: str, parts: list[str]
) -> None:
    whole = told(how, ["".join(parts)])
    assert told(how, parts) == whole
    assert told(how, list("".join(parts))) == whole


def test_brackets_without_end_are_text_and_break_nothing() -> None:
    deep = '{"name": "add", "x": ' + "[" * 5000 + "]" * 5000 + "}"
    assert told("llama3", [deep]) == (deep, [])
