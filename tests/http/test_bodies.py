"""What a body may say, and how a bad one is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloserve.errors import BadInput
from sloserve.http.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    parse,
    turns,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"prompt": "hi", **fields}).encode())


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, json.dumps({"messages": MESSAGES, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 2.5}, "temperature: got 2.5, allowed: a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature: got 'hot', allowed: a number from 0 to 2"),
        ({"top_p": -0.1}, "top_p: got -0.1, allowed: a number from 0 to 1"),
        ({"top_k": -2}, "top_k: got -2, allowed: a whole number from -1 to 2147483648"),
        ({"min_p": 1.1}, "min_p: got 1.1, allowed: a number from 0 to 1"),
        ({"presence_penalty": 3}, "presence_penalty: got 3, allowed: a number from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty: got -3, allowed: a number from -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty: got 0, allowed: a number above 0 to 100"),
        ({"n": 0}, "n: got 0, allowed: a whole number from 1 to 128"),
        ({"n": 1.5}, "n: got 1.5, allowed: a whole number from 1 to 128"),
        ({"max_tokens": -1}, "max_tokens: got -1, allowed: a whole number from 0 up"),
        ({"max_tokens": 0}, "max_tokens: got 0, allowed: 1 or more (0 only with echo)"),
        ({"min_tokens": -1}, "min_tokens: got -1, allowed: a whole number from 0 up"),
        ({"logprobs": 21}, "logprobs: got 21, allowed: a whole number from 0 to 20"),
        ({"best_of": 3}, "best_of: got 3, allowed: the same as n (1)"),
        ({"suffix": "end"}, "suffix: not served; allowed: empty"),
        ({"stop": ["a", ""]}, "stop: allowed: a string or a list of strings, none of them empty"),
        ({"stop": 5}, "stop: allowed: a string or a list of strings, none of them empty"),
        ({"stop": ["x"] * 65}, "stop: got ["),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]: got -1"),
        ({"logit_bias": {"a": 1}}, "logit_bias: got 'a': 1, allowed: token ids with a bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias: got '1': 101, allowed: token ids with a bias"),
        ({"logit_bias": [1]}, "logit_bias: allowed: an object of at most 1024 token ids"),
        ({"prompt": None}, "prompt: allowed: a string, a list of strings"),
        ({"prompt": []}, "prompt: allowed: a string, a list of strings"),
        ({"prompt": [1, "a"]}, "prompt: allowed: a string, a list of strings"),
        ({"prompt": [[1], []]}, "prompt: allowed: a string, a list of strings"),
        ({"prompt": [True]}, "prompt: allowed: a string, a list of strings"),
        ({"prompt": ["x"] * 257}, "prompt: 257 prompts, allowed: 1 to 256 in one request"),
        ({"prompt": ["x"] * 10, "n": 100}, "n: 10 prompts x n = 100, allowed: at most 256"),
        ({"stream_options": {}}, "stream_options: only allowed when stream is true"),
        ({"stream": "maybe"}, "stream: got 'maybe'"),
        ({"seed": 2**64}, "seed: got 18446744073709551616, allowed: a whole number from -9"),
        (
            {"response_format": {"type": "yaml"}},
            "response_format.type: got 'yaml', allowed: 'text'",
        ),
        ({"model": 5}, "model: got 5"),
    ],
)
def test_a_bad_completion_field_is_named_with_its_value_and_range(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        completion(**fields)
    assert caught.value.message.startswith(message)
    assert caught.value.field is not None
    assert caught.value.field.split("[")[0].split(".")[0] in fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: got []"),
        ({"messages": "hi"}, "messages: got 'hi'"),
        ({"messages": [{"content": "x"}]}, "messages[0].role: is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: got 5"),
        ({"max_tokens": 0}, "max_tokens: got 0, allowed: a whole number from 1 up"),
        ({"max_completion_tokens": 0}, "max_completion_tokens: got 0"),
        ({"top_logprobs": 3}, "top_logprobs: only allowed when logprobs is true"),
        ({"logprobs": True, "top_logprobs": 30}, "top_logprobs: got 30"),
        ({"tools": [{"type": "function"}]}, "tools[0].function: is missing"),
    ],
)
def test_a_bad_chat_field_is_named_too(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        chat(**fields)
    assert caught.value.message.startswith(message)


def test_missing_and_unreadable_bodies_are_told_apart() -> None:
    with pytest.raises(BadInput, match="prompt: is missing"):
        parse(CompletionBody, b"{}")
    for raw in (b"", b"{", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100_000):
        with pytest.raises(BadInput, match="the body is not valid JSON"):
            parse(CompletionBody, raw)
    with pytest.raises(BadInput, match="got"):
        parse(CompletionBody, b"[]")


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("", [""]),
    ],
)
def test_prompts_come_in_four_shapes(prompt: Any, kept: Any) -> None:
    assert completion(prompt=prompt).prompt == kept


def test_unknown_fields_and_nulls_are_tolerated() -> None:
    body = completion(
        new_field={"x": 1}, logprobs=None, stop=None, logit_bias=None, n=None, stream=None
    )
    assert (body.num_choices, body.stop, body.logit_bias) == (1, [], {})


def test_chat_takes_both_names_of_the_token_limit_and_prefers_the_newer() -> None:
    assert chat().max_output is None
    assert chat(max_tokens=5).max_output == 5
    assert chat(max_tokens=5, max_completion_tokens=7).max_output == 7


def test_text_parts_are_joined_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "user", "content": parts, "name": "x"}])
    assert turns(body.messages) == [{"role": "user", "content": "a\nb", "name": "x"}]
    picture = chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(BadInput, match=r"messages\[0\].content: got a part of type 'image_url'"):
        turns(picture.messages)


def test_tokenize_wants_one_of_prompt_and_messages() -> None:
    with pytest.raises(BadInput, match="exactly one of prompt and messages"):
        parse(TokenizeBody, b"{}")
    assert parse(DetokenizeBody, b'{"tokens": [1, 2]}').tokens == [1, 2]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    field=st.sampled_from(sorted({*CompletionBody.model_fields, *ChatBody.model_fields})),
    value=ANYTHING,
    kind=st.sampled_from([ChatBody, CompletionBody]),
)
def test_whatever_a_field_holds_it_is_taken_or_refused_by_name(
    field: str, value: object, kind: type[ChatBody] | type[CompletionBody]
) -> None:
    raw = json.dumps({"prompt": "x", "messages": MESSAGES, field: value}).encode()
    refused = ""
    try:
        parse(kind, raw)
    except BadInput as error:
        refused = error.message
    assert not refused or field in refused or refused.startswith("the body is not valid JSON")
