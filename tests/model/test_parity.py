"""The engine says what plain `generate` says, whatever else is in the batch."""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import build_batch
from sloserve.model.runner import forward

TOLERANCE = 1e-4
VOCABULARY = 128
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
WINDOW = {**GQA, "sliding_window": 8}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt-350m-style": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "llama": ("llama", GQA),
    "llama-tied-mha-biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-3-rope": (
        "llama",
        {
            **GQA,
            **rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    "llama-yarn": (
        "llama",
        {**GQA, **rope("yarn", factor=4.0, original_max_position_embeddings=128)},
    ),
    "mistral-window": ("mistral", WINDOW),
    "mixtral": ("mixtral", {**WINDOW, "num_local_experts": 4}),
    "qwen2": ("qwen2", GQA),
    "qwen2-window": ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**GQA, "head_dim": 16}),
    "qwen3-moe": (
        "qwen3_moe",
        {
            **GQA,
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "mlp_only_layers": [1],
        },
    ),
    "gemma": ("gemma", {**GQA, "head_dim": 16}),
    "gemma2-softcap": (
        "gemma2",
        {
            **WINDOW,
            "head_dim": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 20,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **WINDOW,
            "head_dim": 16,
            "layer_types": ALTERNATING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma4-sizes-per-layer": (
        "gemma4_text",
        {
            **WINDOW,
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
    ),
    "phi": ("phi", {}),
    "phi3-partial-rotary": (
        "phi3",
        {**WINDOW, **rope("default", partial_rotary_factor=0.5), "pad_token_id": 0},
    ),
    "gpt2": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt-neox-parallel": ("gpt_neox", rope("default", partial_rotary_factor=0.25)),
    "gpt-neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt-bigcode": ("gpt_bigcode", {}),
    "olmo2": ("olmo2", GQA),
    "olmo3": ("olmo3", {**WINDOW, "layer_types": ALTERNATING}),
    "smollm3-no-rope": ("smollm3", {**GQA, "no_rope_layer_interval": 2}),
    "granite": (
        "granite",
        {
            **GQA,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
        },
    ),
    "cohere": ("cohere", {**GQA, "use_qk_norm": True, "logit_scale": 0.25}),
    "cohere2": ("cohere2", {**WINDOW, "layer_types": ALTERNATING}),
    "stablelm": ("stablelm", GQA),
    "deepseek-v3-wide-keys": (
        "deepseek_v3",
        {
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 12,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt-oss-sinks": (
        "gpt_oss",
        {**WINDOW, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
EXPERTS = ("mixtral", "qwen3-moe", "gpt-oss-sinks", "deepseek-v3-wide-keys")
MANDATORY = ("llama", "qwen2", "opt")


def a_config(family: str) -> PreTrainedConfig:
    kind, changes = FAMILIES[family]
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(**{**SIZES, **changes})
    return config


def prompts(*lengths: int) -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths]


def num_ties(
    own: tuple[list[int], Tensor], expected: tuple[list[int], Tensor], *, where: str = ""
) -> int:
    """
    1 when the tokens part where two logits lie within the tolerance: what follows has another
    context. Asserts that logits agree up to there, and tokens too if there is no tie.
    """
    for n, (token, right) in enumerate(zip(own[0], expected[0], strict=True)):
        difference = float((own[1][n] - expected[1][n]).abs().max())
        assert difference < TOLERANCE, f"{where}: logits of token {n} differ by {difference:.1e}"
        if token != right:
            first, second = expected[1][n].topk(2).values.tolist()
            assert first - second < TOLERANCE, f"{where}: token {n} is {token}, not {right}"
            return 1
    return 0


@pytest.mark.parametrize("attention", ["auto", "torch"])  # lean layers, transformers' own
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_logits_equal_plain_generate_through_joins_and_preemptions(
    family: str, attention: str, the_world: Any, a_talk: Any, a_service: Any
) -> None:
    world = the_world(family, a_config(family), attention=attention)
    head, *rest = prompts(33, 5, 17, 8, 23, 30)
    prompt = [rest[0], head + rest[1], head + rest[2], rest[3], rest[4]]
    talks = [
        a_talk(tokens, num_output=num_output, joins=joins)
        for tokens, num_output, joins in zip(
            prompt, (14, 16, 14, 12, 8), (0, 0, 3, 4, 5), strict=True
        )
    ]
    service = a_service(world.runner, num_blocks=7, max_batch_tokens=27)
    heard = service.run(*talks)
    # what makes this a proof: pieces of prompts beside decodes, padding, recomputed and shared keys
    assert service.runner.num_mixed >= 3
    assert service.runner.num_padded >= 3
    assert service.scheduler.counters.num_preemptions >= 2
    assert service.scheduler.blocks.num_hit_tokens >= 32
    ties = 0
    for i, (talk, own) in enumerate(zip(talks, heard, strict=True)):
        expected = world.greedy(talk.prompt, talk.num_output)
        ties += num_ties(own, expected, where=f"request {i}")
    assert ties <= 1, f"{ties} of {len(talks)} answers part at a tie"


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3", "gpt-oss-sinks"])
def test_a_prompt_seen_before_costs_its_last_block_and_says_the_same(
    family: str, the_world: Any, a_talk: Any, a_service: Any
) -> None:
    world = the_world(family, a_config(family))
    prompt = prompts(80)[0]
    first = a_talk(prompt, num_output=4)
    again = a_talk(prompt, num_output=4, joins=8)
    salted = a_talk(prompt, num_output=4, joins=16, salt="another tenant")
    service = a_service(world.runner, num_blocks=20, max_batch_tokens=128)
    heard = service.run(first, again, salted)
    assert service.scheduler.blocks.num_hit_tokens == 64  # of 80: the last block is computed
    assert service.runner.num_computed_tokens == 83 + (16 + 3) + 83
    assert service.num_cached == [0, 64, 0]
    expected = world.greedy(prompt, 4)
    for own in heard:
        assert num_ties(own, expected) == 0


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt-oss-sinks"])
def test_a_greedy_answer_is_the_same_in_any_company(
    family: str, the_world: Any, a_talk: Any, a_service: Any
) -> None:
    runner = the_world(family, a_config(family)).runner
    source = random.Random(8)
    asked = prompts(*(source.randrange(4, 60) for _ in range(12)))
    alone = [
        a_service(runner, num_blocks=8, max_batch_tokens=64).run(a_talk(prompt, num_output=12))[0]
        for prompt in asked
    ]
    ties = 0
    for num_blocks, max_batch_tokens in ((30, 19), (60, 256)):
        talks = [a_talk(prompt, num_output=12, joins=source.randrange(6)) for prompt in asked]
        service = a_service(runner, num_blocks=num_blocks, max_batch_tokens=max_batch_tokens)
        for i, (own, by_itself) in enumerate(zip(service.run(*talks), alone, strict=True)):
            ties += num_ties(own, by_itself, where=f"request {i}")
    assert ties <= 1, f"{ties} of {2 * len(asked)} answers part at a tie"


@pytest.mark.parametrize("family", EXPERTS)
def test_padding_disturbs_no_token_on_its_way_to_the_experts(family: str, the_world: Any) -> None:
    world = the_world(family, a_config(family))
    runner = world.runner
    prompt, other = prompts(33, 4)
    rows = [a_row(prompt, [3, 1, 2]), a_row(other, [5])]

    def logits(padding: Sequence[int]) -> Tensor:
        batch = build_batch(rows, block_size=16, device=runner.cache.device)
        assert batch.input_ids.shape[1] == 37 + len(padding)
        batch.input_ids[0, 37:] = torch.tensor(padding)
        with torch.inference_mode():
            return forward(runner.model, batch, runner.cache)

    plain = logits([0, 0, 0])
    assert float((logits([101, 57, 23]) - plain).abs().max()) < 1e-6
    with torch.inference_mode():
        expected = [world.plain(torch.tensor([tokens])).logits[0, -1] for tokens in (prompt, other)]
    assert float((plain - torch.stack(expected)).abs().max()) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 16, 200])
def test_the_size_of_prefill_chunks_changes_nothing(
    chunk: int, the_world: Any, a_talk: Any, a_driver: Any
) -> None:
    world = the_world("llama", a_config("llama"))
    talks = [a_talk(p, num_output=6, joins=i) for i, p in enumerate(prompts(16, 33, 150))]
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


def test_the_comparison_sees_wrong_logits_wrong_tokens_and_ties() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 3.00005, 0.0]])
    right = ([2, 1], logits)
    assert num_ties(right, right) == 0
    assert num_ties(([2, 0], logits), right) == 1
    with pytest.raises(AssertionError, match="token 0 is 1, not 2"):
        num_ties(([1, 1], logits), right)
    with pytest.raises(AssertionError, match=r"logits of token 1 differ by 2\.0e-04"):
        num_ties(([2, 1], logits + torch.tensor([[0.0], [2e-4]])), right)


def test_the_documented_families_are_the_ones_proven_here() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    section = text.split("## Proven", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| [^|]+\| (`[^|]+`) +\|", section, flags=re.MULTILINE)
    documented = {kind for row in rows for kind in re.findall(r"`(\w+)`", row)}
    assert documented == {kind for kind, _ in FAMILIES.values()}


def a_row(tokens: list[int], table: list[int]) -> StepRow:
    return StepRow(
        request_id=0,
        tokens=tokens,
        num_prompt=len(tokens),
        start=0,
        count=len(tokens),
        block_table=table,
        sample=True,
        sampling=SamplingParams(),
    )
