"""Small checkpoints for two ranks."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from sloserve.slo.service import EngineSpec, ModelSpec

VOCABULARY = 261  # odd: the ranks' parts of it are not equal
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 256,
}
MODEL = ModelSpec(source="file:///model", served_name="m")
ENGINE = EngineSpec(threads=2, dtype="float32", kv_bytes=2_000_000, tensor_parallel_size=2)


def a_config(kind: str, **changes: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**{**SIZES, **changes})
    return config


def saved(config: PreTrainedConfig, folder: Path) -> Path:
    """Random weights large enough that every part of every layer matters."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed" in name else 0.12)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder
