"""What an adapter folder must hold to be served, and what is said of one that does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from sloserve.errors import BadInput, NotFound
from sloserve.model.lora.config import checked_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

Load = Callable[..., Any]


def test_facts_name_the_adapters_and_their_memory_is_counted(
    loaded: Load, base: Path, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner = loaded(base, saved)
    assert runner.facts.adapters == ("polite",)
    per_layer = 4 * (32 + 32) + 4 * (32 + 16)  # rank x (in + out) of queries and values
    assert runner.adapters.num_bytes == 3 * per_layer * 4
    assert "LoRA adapters: polite (5.2 KiB)" in caplog.text
    runner.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is True .*; served is nothing: train without it, or merge"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"bias": "all"}, "bias is 'all' in its adapter_config.json; served is 'none'"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"use_next_year": {"a": 1}}, "use_next_year is"),
        ({"r": 8}, r"rank 8 needs lora_A \(8, 32\) and lora_B \(32, 8\); it has \(4, 32\)"),
        ({"r": 0}, "a rank is below 1"),
        ({"r": "many"}, "adapter_config.json: invalid literal"),
        ({"rank_pattern": {"(": 2}}, "adapter_config.json"),
    ],
)
def test_what_would_be_computed_wrong_is_refused_by_name(
    loaded: Load, changes: dict[str, Any], words: str, base: Path, saved: Path
) -> None:
    config = saved / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(BadInput, match=rf"adapter 'polite'.*{words}") as refused:
        loaded(base, saved)
    assert refused.value.field == "model.lora"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("layers.0.self_attn.q_proj", "lacks lora_A of 'model.layers.0.self_attn.q_proj'"),
        ("layers.9.self_attn.q_proj", "'model.layers.9.self_attn.q_proj', which is no linear"),
        ("embed_tokens", "holds 'base_model.model.model.embed_tokens.lora_embedding_A'"),
        ("norm", "holds 'base_model.model.model.norm.weight'; served are changes of linear layers"),
        ("nan", "holds NaN"),
        ("nothing", "holds no weights"),
        ("torn", "adapter_model.safetensors"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused_with_what_was_seen(
    loaded: Load, changed: str, words: str, base: Path, saved: Path
) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    match changed:
        case "layers.0.self_attn.q_proj":
            del tensors[key]
        case "layers.9.self_attn.q_proj":
            tensors[key.replace("layers.0", "layers.9")] = tensors[key].clone()
        case "embed_tokens":
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.ones(4, 128)
        case "norm":
            tensors["base_model.model.model.norm.weight"] = torch.zeros(32)
        case "nan":
            tensors[key][0, 0] = torch.nan
        case "nothing":
            tensors = {}
    save_file(tensors, path)
    if changed == "torn":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match=f"adapter 'polite'.*{words}"):
        loaded(base, saved)


def test_an_adapter_of_another_model_tells_which_it_was_made_for(
    loaded: Load, saved: Path, weights: Callable[..., Path], tmp_path: Path
) -> None:
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    wider = weights(config, tmp_path / "wider")
    with pytest.raises(BadInput, match=r"does not fit this LlamaForCausalLM.*made for .*/model"):
        loaded(wider, saved)


def test_adapters_over_several_devices_are_refused_with_the_reason(
    loaded: Load, base: Path, saved: Path
) -> None:
    with pytest.raises(BadInput, match=r"2 ranks and LoRA adapters .* not cut as the plan"):
        loaded(base, saved, tensor_parallel_size=2)


def test_a_folder_that_is_no_adapter_says_what_it_holds(base: Path, saved: Path) -> None:
    with pytest.raises(NotFound, match="'/nowhere' does not exist"):
        checked_adapter(Path("/nowhere"), "/nowhere")
    with pytest.raises(BadInput, match=r"holds a whole model: there is no adapter_config.json"):
        checked_adapter(base, "x")
    assert checked_adapter(saved, "x") == saved
    weights = saved / "adapter_model.safetensors"
    weights.rename(saved / "adapter_model.bin")
    with pytest.raises(BadInput, match=r"adapter_model\.bin is a pickle"):
        checked_adapter(saved, "x")
