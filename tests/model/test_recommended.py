"""What generation_config.json, config.json and the tokenizer say about an answer."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from sloserve.engine.sampling import SamplingParams
from sloserve.model.recommended import default_sampling, end_tokens


@pytest.fixture(scope="module")
def a_network() -> Callable[..., LlamaForCausalLM]:
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            eos_token_id=2,
        )
    )

    def with_recommendations(**given: Any) -> LlamaForCausalLM:
        build: Any = GenerationConfig
        network.generation_config = build(**given)
        return network

    return with_recommendations


def test_recommended_sampling_becomes_the_default(a_network: Any) -> None:
    network = a_network(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, min_p=0.05)
    assert default_sampling(network) == SamplingParams(
        temperature=0.6, top_p=0.9, top_k=20, min_p=0.05
    )
    penalised = a_network(repetition_penalty=1.1)
    assert default_sampling(penalised) == SamplingParams(repetition_penalty=1.1)


def test_without_recommendations_the_defaults_are_those_of_openai(a_network: Any) -> None:
    assert default_sampling(a_network()) == SamplingParams()
    network = a_network()
    network.generation_config = None
    assert default_sampling(network) == SamplingParams()
    assert end_tokens(network) == (2,)


def test_a_recommended_temperature_of_0_is_not_taken_for_none(a_network: Any) -> None:
    assert default_sampling(a_network(temperature=0.0)).temperature == 0.0


def test_what_is_not_followed_is_logged_by_name(
    a_network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        default_sampling(a_network(bad_words_ids=[[3]], no_repeat_ngram_size=2))
        default_sampling(a_network(max_new_tokens=9, pad_token_id=0))
    assert [record.getMessage() for record in caplog.records] == [
        "generation_config.json: not followed here: bad_words_ids, no_repeat_ngram_size"
    ]


def test_stop_strings_and_suppressed_tokens_become_defaults(a_network: Any) -> None:
    network = a_network(
        stop_strings=["<end>", ""], suppress_tokens=[3, 1, 3, -1, 99], begin_suppress_tokens=[2]
    )
    assert default_sampling(network) == SamplingParams(
        stop=("<end>",), suppress=(1, 3), suppress_first=(2,)
    )
    assert default_sampling(a_network(stop_strings="x")).stop == ("x",)


def test_ends_are_those_of_the_generation_config_before_the_configs(a_network: Any) -> None:
    assert end_tokens(a_network(eos_token_id=[5, 7])) == (5, 7)
    assert end_tokens(a_network(eos_token_id=3)) == (3,)
    assert end_tokens(a_network()) == (2,)


def test_the_end_of_the_tokenizer_ends_too_and_nothing_twice(a_network: Any) -> None:
    assert end_tokens(a_network(eos_token_id=[5, 7]), tokenizer_eos=9) == (5, 7, 9)
    assert end_tokens(a_network(eos_token_id=[5, 7]), tokenizer_eos=7) == (5, 7)
    assert end_tokens(a_network(eos_token_id=-1)) == ()
