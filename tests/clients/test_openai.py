"""OpenAI's client with a real model: prompts of every kind, at a replica and through a gateway."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion

pytestmark = pytest.mark.slow  # a model is loaded

TEXTS = ["Return a new list", "The value of the mapping", "def f(x):"]


@pytest.fixture(params=["replica", "gateway"])
def sdk(request: pytest.FixtureRequest, service: Any) -> Iterator[openai.OpenAI]:
    url = f"{service.url(request.param)}/v1"
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=300) as made:
        yield made


def tokens_of(sdk: openai.OpenAI, text: str) -> list[int]:
    told = sdk.post("/../tokenize", body={"prompt": text}, cast_to=object)
    assert isinstance(told, dict)
    return list(told["tokens"])


def scored(sdk: openai.OpenAI, prompt: Any, **more: Any) -> Completion:
    """As lm_eval asks for likelihoods."""
    answer: Completion = sdk.completions.create(
        model="assistant", prompt=prompt, max_tokens=1, echo=True, logprobs=1, temperature=0, **more
    )
    return answer


def likelihoods(answer: Completion) -> list[list[Any]]:
    """Of the prompts' tokens, None for the first, without the one that was drawn."""
    found: list[list[Any]] = []
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        found.append(list(choice.logprobs.token_logprobs[:-1]))
    return found


def test_every_kind_of_prompt_gives_the_same_answers(sdk: openai.OpenAI) -> None:
    ids = [tokens_of(sdk, text) for text in TEXTS]
    singles: list[Any] = [*TEXTS, *ids]
    told = [
        [choice.text for choice in sdk.completions.create(
            model="assistant", prompt=prompt, max_tokens=8, temperature=0
        ).choices]
        for prompt in (TEXTS, ids, *singles)
    ]  # fmt: skip
    texts, by_ids, *alone = told
    assert len(texts) == 3
    assert by_ids == texts
    assert [one for (one,) in alone] == [*texts, *texts]


def test_a_batch_of_prompts_is_scored_as_each_is_alone(sdk: openai.OpenAI) -> None:
    ids = [tokens_of(sdk, text) for text in TEXTS]
    together = likelihoods(scored(sdk, ids))
    for prompt, found in zip(ids, together, strict=True):
        assert len(found) == len(prompt)
        assert found[0] is None
        (alone,) = likelihoods(scored(sdk, prompt))
        assert found[1:] == pytest.approx(alone[1:], abs=1e-4)


def test_a_prompt_in_the_prefix_cache_is_scored_in_full(sdk: openai.OpenAI) -> None:
    prompt = tokens_of(sdk, " ".join(TEXTS * 12))
    assert len(prompt) > 96  # it is computed in pieces
    (before,) = likelihoods(scored(sdk, prompt, extra_body={"cache_salt": "scores"}))
    for _ in range(2):
        cached = sdk.completions.create(
            model="assistant", prompt=prompt, max_tokens=1, extra_body={"cache_salt": "scores"}
        )
    assert cached.usage is not None
    assert cached.usage.prompt_tokens_details is not None
    assert cached.usage.prompt_tokens_details.cached_tokens
    again = scored(sdk, prompt, extra_body={"cache_salt": "scores"})
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == 0
    (after,) = likelihoods(again)
    assert len(after) == len(prompt)
    assert after[1:] == pytest.approx(before[1:], abs=1e-4)


def test_an_echo_alone_needs_no_answer(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(
        model="assistant", prompt=TEXTS, max_tokens=0, echo=True, logprobs=0
    )
    assert [choice.text for choice in answer.choices] == TEXTS
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == choice.text


def test_the_fields_of_load_generators_are_taken(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="assistant",
        messages=[{"role": "user", "content": "Hello"}],
        max_completion_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "repetition_penalty": 1.0, "logprobs": None},
    )
    *_, before, last = list(stream)
    assert before.choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 9
    assert sdk.models.retrieve("assistant").id == "assistant"
    assert [model.id for model in sdk.models.list()] == ["assistant"]
