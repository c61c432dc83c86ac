"""The official client, sync and async, streaming and not."""

import asyncio
from typing import Any

import openai
import pytest


@pytest.fixture
def client(shared: Any) -> Any:
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="x", max_retries=0) as made:
        yield made


def test_a_chat_answer_comes_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sim", messages=[{"role": "user", "content": "hi"}], max_tokens=4
    )
    assert answer.choices[0].message.content == "USER"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_chat_answer_streams_and_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="sim",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        max_completion_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "USER"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[0].usage is None


def test_the_async_client_streams_completions(shared: Any) -> None:
    async def main() -> str:
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="x") as client:
            stream = await client.completions.create(
                model="sim", prompt="abc", max_tokens=6, stream=True
            )
            return "".join([c.choices[0].text async for c in stream])

    assert asyncio.run(main()) == "ABCABC"


def test_the_async_client_gets_whole_answers_at_once(shared: Any) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="x") as client:
            asks = [
                client.completions.create(model="sim", prompt=f"{c}{c}", max_tokens=2)
                for c in "abcdefgh"
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asks)]

    assert asyncio.run(main()) == [f"{c}{c}" for c in "ABCDEFGH"]


def test_several_prompts_and_several_answers_come_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sim", prompt=["ab", "cd"], n=2, max_tokens=2)
    assert [c.text for c in answer.choices] == ["AB", "AB", "CD", "CD"]
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.completion_tokens == 8


def test_several_answers_stream_side_by_side(client: openai.OpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.completions.create(
        model="sim", prompt="xyz", n=3, max_tokens=3, stream=True, seed=7
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "XYZ", 1: "XYZ", 2: "XYZ"}


@pytest.mark.parametrize("prompt", [[97, 98], [[97, 98]]])
def test_token_ids_are_prompts(client: openai.OpenAI, prompt: Any) -> None:
    answer = client.completions.create(model="sim", prompt=prompt, max_tokens=2)
    assert answer.choices[0].text == "AB"


def test_echo_with_logprobs_gives_the_likelihood_of_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="sim", prompt=[97, 98, 99], max_tokens=1, echo=True, logprobs=1, seed=1
    )
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == "abcA"
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c", "A"]
    assert logprobs.token_logprobs == [None, -1.0, -1.0, -0.5]
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[3] == {"A": -0.5}


def test_zero_logprobs_are_those_of_the_tokens_without_alternatives(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sim", prompt="ab", max_tokens=1, logprobs=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [-0.5]


def test_echo_alone_shows_no_drawn_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sim", prompt="abc", max_tokens=0, echo=True)
    assert answer.choices[0].text == "abc"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_chat_logprobs_have_chat_s_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sim",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=2,
        logprobs=True,
        top_logprobs=1,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [t.token for t in logprobs.content] == ["U", "S"]
    assert logprobs.content[0].top_logprobs[0].logprob == -0.5


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["sim"]
    assert client.models.retrieve("sim").id == "sim"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist here, served: sim"):
        client.completions.create(model="gpt-9", prompt="x")


def test_usage_comes_with_every_chunk_when_asked(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="sim",
        prompt="ab",
        max_tokens=3,
        stream=True,
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    assert [c.usage.completion_tokens for c in stream if c.usage] == [1, 2, 3, 3]


def test_vllm_s_extra_fields_reach_the_engine(client: openai.OpenAI, shared: Any) -> None:
    client.completions.create(
        model="sim",
        prompt="ab",
        max_tokens=3,
        seed=5,
        stop=["x", "y"],
        logit_bias={"7": -100},
        extra_body={
            "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True,
            "min_tokens": 2, "stop_token_ids": [9], "something_new": {"a": 1}, "logprobs": None,
        },
    )  # fmt: skip
    sampling = shared.runner.asked[-1]
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (3, 0.1, 1.1)
    assert (sampling.ignore_eos, sampling.min_tokens, sampling.stop_token_ids) == (True, 2, (9,))
    assert (sampling.seed, sampling.stop, sampling.logit_bias) == (5, ("x", "y"), {7: -100.0})


def test_a_prompt_seen_before_is_told_as_cached_unless_its_salt_is_another(
    client: openai.OpenAI,
) -> None:
    def num_cached(**extra: str) -> int | None:
        answer = client.completions.create(
            model="sim", prompt="0123456789abcdef" * 5, max_tokens=2, extra_body=extra
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens

    assert num_cached() == 0
    assert num_cached() == 76  # of 80, in blocks of 4: at least one token is computed
    assert num_cached(cache_salt="tenant a") == 0
    assert num_cached(cache_salt="tenant a") == 76
    assert num_cached(cache_salt="tenant b") == 0
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        num_cached(cache_salt="")
