"""Adapters served beside each other say what plain transformers with PEFT says of each alone."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from sloserve.model.load import load_runner
from sloserve.slo.service import EngineSpec, ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

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
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}, ALL),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}, ["q_proj", "v_proj", "lm_head"]),
    "opt": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        ["q_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"],
    ),
    "gpt2": ("gpt2", {}, ["c_attn", "c_proj", "c_fc"]),
    "phi3": ("phi3", {"sliding_window": 8}, ["qkv_proj", "gate_up_proj"]),
}
ENGINE = EngineSpec(threads=1, dtype="float32", kv_bytes=4_000_000)


def a_config(family: str) -> PreTrainedConfig:
    kind, changes, _ = FAMILIES[family]
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(**{**SIZES, **changes})
    return config


def an_adapter(base: Path, folder: Path, *, seed: int, **config: Any) -> Path:
    """An adapter as PEFT saves it, with weights that change every answer."""
    torch.manual_seed(seed)
    plain = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(plain, LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, **config}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of embeddings it saves
        adapted.save_pretrained(folder)
    return folder


class World:
    """A runner with adapters, and what PEFT makes of each."""

    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        self._base, self._adapters = base, adapters
        self.runner = load_runner(
            base,
            model=ModelSpec(source="file:///model", served_name="m"),
            engine=ENGINE,
            adapters=adapters,
        )
        self._plain: dict[str, Any] = {}

    def greedy(self, adapter: str, prompt: list[int], num_output: int) -> Any:
        if adapter not in self._plain:
            model = AutoModelForCausalLM.from_pretrained(self._base, attn_implementation="eager")
            if adapter:
                model = PeftModel.from_pretrained(model, self._adapters[adapter])
            self._plain[adapter] = model
        ids = torch.tensor([prompt])
        out = self._plain[adapter].generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=num_output,
            max_new_tokens=num_output,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


@pytest.fixture(scope="session")
def the_adapted(
    tmp_path_factory: pytest.TempPathFactory, weights: Callable[..., Path]
) -> Callable[[str], World]:
    """Three adapters over a model: other ranks, other layers, other scales; built once."""
    built: dict[str, World] = {}

    def build(family: str) -> World:
        if family not in built:
            base = weights(a_config(family), tmp_path_factory.mktemp(family) / "model")
            targets = FAMILIES[family][2]
            like: Callable[..., Path] = lambda name, **more: an_adapter(  # noqa: E731
                base, base.parent / name, seed=len(name), fan_in_fan_out=family == "gpt2", **more
            )
            built[family] = World(
                base,
                {
                    "polite": like("polite", target_modules=targets, lora_alpha=8),
                    "terse": like("terse", target_modules=targets[:2], r=6, use_rslora=True),
                    "rude one": like(
                        "rude", target_modules=targets, rank_pattern={targets[0]: 2},
                        alpha_pattern={targets[-1]: 3},
                    ),
                },
            )  # fmt: skip
        return built[family]

    return build


def prompts(*lengths: int) -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths]


def assert_same(own: Any, expected: Any, *, where: str) -> None:
    for n, (token, right) in enumerate(zip(own[0], expected[0], strict=True)):
        difference = float((own[1][n] - expected[1][n]).abs().max())
        assert difference < TOLERANCE, f"{where}: logits of token {n} differ by {difference:.1e}"
        assert token == right, where


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_several_adapters_say_what_peft_says_through_joins_and_preemptions(
    family: str, the_adapted: Callable[[str], World], a_talk: Any, a_service: Any
) -> None:
    world = the_adapted(family)
    head, *rest = prompts(33, 5, 17, 8, 23)
    asked = [
        ("", rest[0]),
        ("polite", head + rest[1]),
        ("terse", head + rest[1]),
        ("polite", head + rest[2]),
        ("rude one", head + rest[1]),
        ("", head + rest[1]),
    ]
    talks = [
        a_talk(tokens, num_output=12, joins=joins, adapter=adapter)
        for (adapter, tokens), joins in zip(asked, (0, 0, 2, 3, 4, 5), strict=True)
    ]
    service = a_service(world.runner, num_blocks=8, max_batch_tokens=27)
    heard = service.run(*talks)
    assert service.runner.num_mixed >= 3
    assert service.runner.num_padded >= 3
    assert service.scheduler.counters.num_preemptions >= 2
    answers = set()
    for (adapter, prompt), own in zip(asked, heard, strict=True):
        assert_same(own, world.greedy(adapter, prompt, 12), where=adapter or "the model")
        answers.add((tuple(prompt), tuple(own[0])))
    assert len(answers) == len(asked), "an adapter changes nothing: this test proves nothing"


def test_one_prompt_under_two_adapters_shares_no_keys_and_under_one_it_does(
    the_adapted: Callable[[str], World], a_talk: Any, a_service: Any
) -> None:
    world = the_adapted("llama")
    (prompt,) = prompts(80)
    turns = [
        ("polite", ""), ("", ""), ("terse", ""), ("polite", ""), ("", "6:polite"),
        ("", "polite"), ("polite", "x"), ("", ""),
    ]  # fmt: skip
    talks = [
        a_talk(prompt, num_output=4, joins=8 * i, adapter=adapter, salt=salt)
        for i, (adapter, salt) in enumerate(turns)
    ]
    service = a_service(world.runner, num_blocks=40, max_batch_tokens=128)
    heard = service.run(*talks)
    assert service.num_cached == [0, 0, 0, 64, 0, 0, 0, 64]
    for (adapter, _), own in zip(turns, heard, strict=True):
        assert_same(own, world.greedy(adapter, prompt, 4), where=adapter)
