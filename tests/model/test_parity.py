"""The engine says what plain `generate` says, whatever else is in the batch."""

import random
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sloserve.engine.sampling import SamplingParams

VOCABULARY = 96
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = {"num_key_value_heads": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GQA),
    "llama-tied-mha": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-yarn": (
        "llama",
        {
            **GQA,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen2": ("qwen2", GQA),
    "qwen2-sliding": (
        "qwen2",
        {**GQA, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt-350m-style": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "qwen3": ("qwen3", {**GQA, "head_dim": 16}),
    "mistral-window": ("mistral", {**GQA, "sliding_window": 8}),
    "gemma": ("gemma", {**GQA, "head_dim": 16}),
    "gemma2-softcap": (
        "gemma2",
        {**GQA, "head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": (
        "gemma3_text",
        {**GQA, "head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7},
    ),
    "phi": ("phi", {}),
    "phi3": ("phi3", GQA),
    "gpt2": ("gpt2", {}),
    "gpt-neox": ("gpt_neox", {}),
    "gpt-bigcode": ("gpt_bigcode", {}),
    "gpt-oss-sinks": (
        "gpt_oss",
        {**GQA, "head_dim": 16, "num_local_experts": 4, "sliding_window": 8},
    ),
    "mixtral": ("mixtral", {**GQA, "num_local_experts": 4}),
    "qwen3-moe": (
        "qwen3_moe",
        {
            **GQA,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "olmo2": ("olmo2", GQA),
    "smollm3": ("smollm3", GQA),
    "granite": ("granite", {**GQA, "attention_multiplier": 0.2}),
    "cohere": ("cohere", GQA),
    "stablelm": ("stablelm", GQA),
}
MANDATORY = ("llama", "qwen2", "opt")


def a_config(family: str) -> PreTrainedConfig:
    kind, changes = FAMILIES[family]
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(**{**SIZES, **changes})
    return config


def prompts(*lengths: int) -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_logits_equal_plain_generate_in_mixed_batches(
    family: str, a_world: Any, a_talk: Any, a_driver: Any
) -> None:
    world = a_world(a_config(family))
    sampling = SamplingParams(temperature=0.0, logprobs=VOCABULARY)
    talks = [
        a_talk(prompt, num_output=12, sampling=sampling, joins=joins)
        for prompt, joins in zip(prompts(5, 23, 37), (0, 1, 6), strict=True)
    ]
    driver = a_driver(world.runner)
    driver.run(*talks)
    assert driver.num_mixed >= 3
    for talk in talks:
        tokens, logits = world.greedy(talk.prompt, talk.num_output)
        assert talk.output == tokens
        expected = logits.float().log_softmax(-1)
        for outcome, row in zip(talk.outcomes, expected, strict=True):
            for token, logprob in outcome.logprobs.top:
                assert abs(logprob - float(row[token])) < 1e-4


@pytest.mark.parametrize("family", MANDATORY)
def test_preemption_by_recompute_changes_nothing(
    family: str, a_world: Any, a_talk: Any, a_driver: Any
) -> None:
    world = a_world(a_config(family))
    talks = [a_talk(p, num_output=20, joins=i) for i, p in enumerate(prompts(4, 40, 19, 70))]
    driver = a_driver(world.runner, chunk=11, preempt_every=4)
    driver.run(*talks)
    assert driver.num_preempted >= 4
    for talk in talks:
        assert talk.output == world.greedy(talk.prompt, talk.num_output)[0]


@pytest.mark.parametrize("chunk", [1, 16, 200])
def test_the_size_of_prefill_chunks_changes_nothing(
    chunk: int, a_world: Any, a_talk: Any, a_driver: Any
) -> None:
    world = a_world(a_config("llama"))
    talks = [a_talk(p, num_output=6) for p in prompts(16, 33, 150)]
    a_driver(world.runner, chunk=chunk).run(*talks)
    for talk in talks:
        assert talk.output == world.greedy(talk.prompt, talk.num_output)[0]


@pytest.mark.parametrize("family", MANDATORY)
def test_bfloat16_stays_as_close_to_float32_as_plain_bfloat16(
    family: str, a_world: Any, a_talk: Any, a_driver: Any
) -> None:
    world = a_world(a_config(family), dtype="bfloat16")
    assert world.runner.facts.dtype == "bfloat16"
    prompt = prompts(40)[0]
    talk = a_talk(prompt, num_output=1, sampling=SamplingParams(temperature=0, logprobs=VOCABULARY))
    a_driver(world.runner).run(talk)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        narrow = world.plain(ids).logits[0, -1].float().log_softmax(-1)
        exact = world.plain.float()(ids).logits[0, -1].log_softmax(-1)
    own = torch.zeros(VOCABULARY)
    for token, logprob in talk.outcomes[-1].logprobs.top:
        own[token] = logprob
    assert float((own - exact).abs().max()) <= 3 * float((narrow - exact).abs().max())
