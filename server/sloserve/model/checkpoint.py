"""A folder of weights: what its config says, and the model in it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sloserve.errors import BadInput
from sloserve.model.quantised import check_quantisation, widened

_log = logging.getLogger(__name__)


def read_config(path: Path) -> PreTrainedConfig:
    """What `config.json` says. Raises BadInput for a folder that holds no model that is served."""
    if not path.is_dir():
        raise BadInput(f"{path} is no folder", field="model.source")
    if (path / "adapter_config.json").exists():
        raise BadInput(f"{path} holds a LoRA adapter, not a model", field="model.source")
    if not (path / "config.json").exists():
        raise BadInput(f"{path} has no config.json", field="model.source")
    if not any(path.glob("*.safetensors")):
        raise BadInput(
            f"{path} has no *.safetensors; other weight formats can run code and are not read",
            field="model.source",
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise BadInput(f"{path}/config.json: {error}", field="model.source") from error
    return config


def weight_bytes(path: Path) -> int:
    """Size of the weights in folder `path`, as stored."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def read_weights(
    path: Path, *, dtype: torch.dtype, part: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """
    The model in folder `path`, on CPU, with eager attention. `part` is what transformers is told
    besides, for a rank that reads its part alone.

    Raises BadInput for one that can't be read, or lacks weights.
    """
    check_quantisation(path, str(path))
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        answer = AutoModelForCausalLM.from_pretrained(
            path,
            config=widened(read_config(path)),
            output_loading_info=True,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **(part or {}),
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"{path} can't be loaded: {error}", field="model.source") from error
    network, notes = cast("tuple[PreTrainedModel, dict[str, set[str]]]", answer)
    if lost := sorted(notes["missing_keys"]):  # transformers would leave them random
        raise BadInput(
            f"{path} lacks {len(lost)} of the model's weights, among them {lost[0]}",
            field="model.source",
        )
    for parameter in network.parameters():  # what was widened has 16 bits, whatever was asked for
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.to(dtype)
    return network


def model_len(config: PreTrainedConfig, asked: int | None) -> int:
    """The longest request: what is asked for, never past what the model was made for."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    long_rope = _long_rope_limit(text)
    if long_rope is not None and (limit is None or long_rope < limit):
        if asked is None:
            _log.warning("longrope: requests end at %d tokens (the short factors)", long_rope)
        limit = long_rope
        why = (
            f"past {limit} tokens its rotary embedding (longrope) follows the longest request of "
            f"the batch and would change all others"
        )
    else:
        why = f"the model was made for {limit} positions (max_position_embeddings)"
    if asked is None:
        if limit is None:
            raise BadInput(
                "the model names no longest position; set one", field="model.maxModelLen"
            )
        return int(limit)
    if limit is not None and asked > limit:
        raise BadInput(f"{asked} is too long: {why}", field="model.maxModelLen")
    return asked


def _long_rope_limit(config: PreTrainedConfig) -> int | None:
    """Up to here a longrope model uses its short factors only."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(v for v in parameters.values() if isinstance(v, dict))]
    limits = [
        int(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(limits) if limits else None
