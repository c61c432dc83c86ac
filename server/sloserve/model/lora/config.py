"""What an adapter says of itself: PEFT's `adapter_config.json`, read and judged."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sloserve.errors import BadInput, NotFound

T = TypeVar("T")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIELD = "model.lora"

_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules",
    "corda_config", "eva_config", "lora_ga_config", "loftq_config",  # of starts, judged below
}  # fmt: skip
"""Of training, or told by the weights themselves."""

_READ = {"alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora"}

_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    # the other starts change the base model's weights; PEFT can turn such adapters into plain ones
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}

_TO_DO = {
    "peft_type": "train a LoRA adapter, or merge this one into the model",
    "modules_to_save": "whole layers are not adapted here: train without it, or merge the adapter",
    "use_dora": "train without it, or merge the adapter into the model",
    "init_lora_weights": "save it with PEFT's path_initial_model_for_weight_conversion",
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """How the two factors of each layer become a change of it."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    base: str
    """The model that it says it was made for; a name for messages, perhaps empty."""

    def rank_of(self, module: str) -> int:
        """The rank of the factors of the layer `module` (its path in the model)."""
        return _matching(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) when stabilised (rsLoRA, arXiv:2312.03732)."""
        rank = self.rank_of(module)
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def checked_adapter(folder: Path, shown: str) -> Path:
    """`folder` if it holds an adapter in PEFT's format; `shown` is what messages call it."""
    if not folder.exists():
        raise NotFound(f"'{shown}' does not exist on this machine")
    if not folder.is_dir():
        raise BadInput(f"'{shown}' is a file; give the folder that holds {CONFIG}", field=FIELD)
    if not (folder / CONFIG).is_file():
        seen = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        what = "a whole model" if (folder / "config.json").is_file() else "no adapter"
        raise BadInput(
            f"'{shown}' holds {what}: there is no {CONFIG} (it holds: {seen}). Give a folder as "
            "PEFT's save_pretrained writes it",
            field=FIELD,
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "; adapter_model.bin is a pickle, which can run code when read" if pickled else ""
        raise BadInput(
            f"'{shown}' has no {WEIGHTS}{why}. Save it with save_pretrained(folder, "
            "safe_serialization=True)",
            field=FIELD,
        )
    return folder


def read_config(folder: Path, *, name: str) -> AdapterConfig:
    """
    The configuration of the adapter `name`. Raises BadInput for what can't be read, and, by its
    name, for everything that would change answers in a way that is not computed here.
    """
    path = folder / CONFIG
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"adapter '{name}': {path}: {error}", field=FIELD) from error
    if not isinstance(given, dict):
        raise BadInput(f"adapter '{name}': {path} holds no JSON object", field=FIELD)
    _judge(given, name)
    try:
        config = AdapterConfig(
            rank=int(given["r"]),
            alpha=float(given["lora_alpha"]),
            rank_pattern={str(k): int(v) for k, v in (given.get("rank_pattern") or {}).items()},
            alpha_pattern={str(k): float(v) for k, v in (given.get("alpha_pattern") or {}).items()},
            rslora=bool(given.get("use_rslora")),
            base=str(given.get("base_model_name_or_path") or ""),
        )
        for pattern in (*config.rank_pattern, *config.alpha_pattern):
            re.compile(pattern)
    except KeyError as error:
        raise BadInput(f"adapter '{name}': {path} lacks {error}", field=FIELD) from error
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise BadInput(f"adapter '{name}': {path}: {error}", field=FIELD) from error
    if min((config.rank, *config.rank_pattern.values())) < 1:
        raise BadInput(f"adapter '{name}': a rank is below 1 in {path}", field=FIELD)
    return config


def _judge(given: Mapping[str, Any], name: str) -> None:
    for key, value in given.items():
        if key in _HARMLESS or key in _READ:
            continue
        allowed = _ALLOWED.get(key)
        if value in allowed if allowed is not None else not value:
            continue
        good = " or ".join(map(repr, allowed)) if allowed is not None else "nothing"
        todo = _TO_DO.get(key, "train without it, or merge the adapter into the model")
        raise BadInput(
            f"adapter '{name}': {key} is {value!r} in its {CONFIG}; served is {good}: {todo}",
            field=FIELD,
        )


def _matching(pattern: Mapping[str, T], module: str, default: T) -> T:
    """The value of the first pattern that the end of the path matches, as PEFT has it."""
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
