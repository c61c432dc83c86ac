"""Thinking and the text for the reader, told apart, streamed and not."""

from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.frontend.thinking import Splitter, Thinking, thinking_of
from sloserve.slo import Promise, Stage

ASK: list[Any] = [{"role": "user", "content": "hi"}]
REASON = {"x-slo-class": "reason"}
STAGES = (Stage("thinking", 0.05, until="</think>"), Stage("answer", 0.1))
PLAIN = Promise("chat", ttft_s=1.0, stages=(Stage("decode", 0.1),))
STAGED = Promise("reason", ttft_s=1.0, stages=STAGES)


class Templated(ByteTokenizer):
    template = "{{ '<think>' }} {{ '</think>' }}"


@pytest.fixture
def client(reasoning: Any) -> Any:
    with openai.OpenAI(base_url=f"{reasoning.url}/v1", api_key="x", max_retries=0) as made:
        yield made


def told(thinking: Thinking, parts: list[str]) -> tuple[str, str]:
    splitter = Splitter(thinking)
    pairs = [splitter.push(part) for part in parts] + [splitter.finish()]
    return "".join(t for t, _ in pairs), "".join(a for _, a in pairs)


@pytest.mark.parametrize(
    ("begins", "text", "expected"),
    [
        (True, "I see.</think>\n\nYes.", ("I see.", "Yes.")),
        (True, "<think>\nI see.\n</think>Yes.", ("I see.\n", "Yes.")),
        (True, "never done", ("never done", "")),
        (True, "a </thin b", ("a </thin b", "")),
        (None, "<think>I see.</think>Yes.", ("I see.", "Yes.")),
        (None, "Yes. </think> is a tag", ("", "Yes. </think> is a tag")),
        (None, " <thi", ("", " <thi")),
        (None, "", ("", "")),
        (True, "x</think></think>", ("x", "</think>")),
    ],
)
def test_an_answer_is_split_at_its_marker_however_it_is_cut(
    begins: bool | None, text: str, expected: tuple[str, str]
) -> None:
    thinking = Thinking("</think>", begins)
    assert told(thinking, [text]) == expected
    assert told(thinking, list(text)) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "</", "think>", "x", " ", "\n"])))
def test_cuts_make_no_difference(parts: list[str]) -> None:
    for begins in (True, None):
        thinking = Thinking("</think>", begins)
        assert told(thinking, parts) == told(thinking, list("".join(parts)))


def test_a_marker_that_is_no_tag_works_as_well() -> None:
    assert told(Thinking("FINAL:", True), ["let me see FIN", "AL: 7"]) == ("let me see ", "7")
    assert Thinking("[/THINK]", True).opening == "[THINK]"


@pytest.mark.parametrize(
    ("promise", "tokenizer", "prompt", "expected"),
    [
        (PLAIN, ByteTokenizer(), "hi", None),
        (STAGED, ByteTokenizer(), "hi", Thinking("</think>", True)),
        (STAGED, ByteTokenizer(), "assistant <think>\n", Thinking("</think>", True)),
        (STAGED, ByteTokenizer(), "assistant <think>\n\n</think>\n\n", None),
        (PLAIN, Templated(), "hi", Thinking("</think>", None)),
        (PLAIN, Templated(), "assistant <think>\n", Thinking("</think>", True)),
        (PLAIN, Templated(), "<think></think>", None),
    ],
)
def test_class_template_and_prompt_tell_whether_it_thinks(
    promise: Promise, tokenizer: Any, prompt: str, expected: Thinking | None
) -> None:
    assert thinking_of(promise, tokenizer.encode(prompt), tokenizer) == expected


def test_thinking_is_a_field_of_its_own_and_counted(reasoning: Any, client: openai.OpenAI) -> None:
    reasoning.runner.says = "Hm, hm.</think>\nYes."
    answer = client.chat.completions.create(model="sim", messages=ASK, extra_headers=REASON)
    message: Any = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm, hm.", "Yes.")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    # The sim's marker is one token, and belongs to the thinking.
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("Hm, hm.") + 1
    assert answer.usage.completion_tokens == len("Hm, hm.") + 1 + len("\nYes.") + 1


def test_thinking_is_streamed_as_it_comes(reasoning: Any, client: openai.OpenAI) -> None:
    reasoning.runner.says = "Hm, hm.</think>Yes."
    deltas: list[Any] = [
        chunk.choices[0].delta
        for chunk in client.chat.completions.create(
            model="sim", messages=ASK, stream=True, n=1, extra_headers=REASON
        )
    ]
    thoughts = [d.reasoning_content for d in deltas if getattr(d, "reasoning_content", None)]
    assert thoughts == list("Hm, hm.")
    assert [d.content for d in deltas if d.content] == list("Yes.")
    assert deltas[0].role == "assistant"


def test_a_class_without_a_marker_shows_the_text_as_it_is(
    reasoning: Any, client: openai.OpenAI
) -> None:
    reasoning.runner.says = "Hm.</think>Yes."
    answer = client.chat.completions.create(
        model="sim", messages=ASK, extra_body={"skip_special_tokens": False}
    )
    message: Any = answer.choices[0].message
    assert message.content == "Hm.</think>Yes."
    assert not hasattr(message, "reasoning_content")


def test_a_model_thinks_freely_and_then_answers_in_shape_or_calls(
    reasoning: Any, client: openai.OpenAI
) -> None:
    reasoning.runner.says = "Red? Green?</think>whatever the grammar makes of it"
    shaped = client.chat.completions.create(
        model="sim",
        messages=ASK,
        extra_headers=REASON,
        extra_body={"guided_choice": ["red", "green"]},
    )
    message: Any = shaped.choices[0].message
    assert message.reasoning_content == "Red? Green?"
    assert message.content in ("red", "green")
    called = client.chat.completions.create(
        model="sim",
        messages=ASK,
        extra_headers=REASON,
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="required",
    )
    message = called.choices[0].message
    assert message.reasoning_content == "Red? Green?"
    assert [call.function.name for call in message.tool_calls] == ["f"]
    assert called.choices[0].finish_reason == "tool_calls"
