"""Answers and chunks as OpenAI's clients read them."""

import json

from hypothesis import given
from hypothesis import strategies as st

from sloserve.http.answers import Answers, Choice, TokenLogprob, Usage, encode

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(text=ANY_TEXT, index=st.integers(0, 127), chat=st.booleans(), usage_field=st.booleans())
def test_every_chunk_is_json_that_holds_the_text(
    text: str, index: int, chat: bool, usage_field: bool
) -> None:
    answers = Answers(request_id="r", model='m"\\é', chat=chat)
    for _ in range(2):  # the first of a chat brings the role, the later ones are put together
        raw = answers.chunk(Choice(index, text), usage_field=usage_field)
        body = json.loads(raw)
        part = body["choices"][0]
        shown = part["delta"]["content"] if chat else part["text"]
        assert shown == text.encode("utf-8", "replace").decode()
        assert (part["index"], part["logprobs"], part["finish_reason"]) == (index, None, None)
        assert body["model"] == 'm"\\é'
        assert body["object"] == ("chat.completion.chunk" if chat else "text_completion")
        assert ("usage" in body) == usage_field
        assert b"\n" not in raw


def test_the_role_comes_once_per_choice_with_its_first_text() -> None:
    answers = Answers(request_id="r", model="m", chat=True)
    deltas = [
        json.loads(answers.chunk(Choice(i, "x"), usage_field=False))["choices"][0]["delta"]
        for i in (0, 1, 0)
    ]
    assert deltas == [
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "x"},
        {"content": "x"},
    ]


def test_the_last_chunk_holds_the_usage_alone() -> None:
    body = json.loads(Answers(request_id="r", model="m", chat=True).usage(Usage(3, 2, 1)))
    assert body["choices"] == []
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_completion_logprobs_keep_the_likeliest_of_tokens_that_read_alike() -> None:
    answers = Answers(request_id="r", model="m", chat=False)
    tokens = (
        TokenLogprob("ab", None),
        TokenLogprob("c", -2.0, (("d", -0.5), ("d", -3.0))),
        TokenLogprob("e", float("-inf")),
    )
    raw = answers.whole([Choice(0, "abce", "stop", logprobs=tokens)], Usage(1, 2))
    found = json.loads(raw)["choices"][0]["logprobs"]
    assert found["tokens"] == ["ab", "c", "e"]
    assert found["token_logprobs"] == [None, -2.0, -9999.0]
    assert found["top_logprobs"] == [None, {"d": -0.5, "c": -2.0}, {"e": -9999.0}]
    assert found["text_offset"] == [0, 2, 3]


def test_half_a_surrogate_pair_does_not_break_an_answer() -> None:
    assert json.loads(encode({"a": "x\ud800"})) == {"a": "x?"}
