"""Models with adapters as PEFT saves them, and what PEFT makes of each."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from sloserve.model.load import load_runner
from sloserve.slo import EngineSpec, ModelSpec

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
    pytest.importorskip("peft", reason="adapters are compared with PEFT: pip install peft")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    plain = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(plain, LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, **config}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of embeddings it saves
        adapted.save_pretrained(str(folder))
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
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._base, attn_implementation="eager"
            )
            if adapter:
                from peft import PeftModel

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


@pytest.fixture
def base(weights: Callable[..., Path], tmp_path: Path) -> Path:
    return weights(a_config("llama"), tmp_path / "model")


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    return an_adapter(base, tmp_path / "polite", seed=1, target_modules=["q_proj", "v_proj"])


def _loaded(base: Path, adapter: Path, **engine: Any) -> Any:
    return load_runner(
        base,
        model=ModelSpec(source="file:///model", served_name="m"),
        engine=replace(ENGINE, **engine),
        adapters={"polite": adapter},
    )


@pytest.fixture
def loaded() -> Callable[..., Any]:
    """`loaded(base, adapter, **engine)`: a runner with the adapter `polite`."""
    return _loaded


@pytest.fixture
def adapter_of() -> Callable[..., Path]:
    """`adapter_of(base, folder, seed=..., **config)`: an adapter as PEFT saves it."""
    return an_adapter
