"""The two factors of every layer that an adapter changes, read and held against the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sloserve.errors import BadInput
from sloserve.model.lora.config import FIELD, WEIGHTS, AdapterConfig, read_config

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Factors:
    """A low-rank change of a linear layer: y += (x @ down.T) @ up."""

    down: Tensor  # (rank, in_features)
    up: Tensor  # (rank, out_features), the scale included


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory, for one model."""

    name: str
    factors: Mapping[str, Factors]  # by the path of the layer in the model


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of a linear layer, quantised ones too; None: it is none."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        return sizes[0], sizes[1]
    return None


def read_adapter(folder: Path, *, name: str, model: PreTrainedModel, dtype: torch.dtype) -> Adapter:
    """
    The adapter `name` in `folder`, in `dtype` on the device of `model`, which is to be adapted.

    Raises BadInput for what is missing, unknown, or does not fit the model.
    """
    config = read_config(folder, name=name)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"adapter '{name}': {folder / WEIGHTS}: {error}", field=FIELD) from error
    sides = _by_module(tensors, name, model)
    linears = {
        path: sizes
        for path, module in model.named_modules()
        if (sizes := linear_sizes(module)) is not None
    }
    factors = {}
    for module, pair in sorted(sides.items()):
        if module not in linears:
            raise BadInput(_unknown(name, module, linears, model, config), field=FIELD)
        factors[module] = _fitting(name, module, pair, linears[module], config, model, dtype)
    return Adapter(name, factors)


def _by_module(
    tensors: Mapping[str, Tensor], name: str, model: PreTrainedModel
) -> dict[str, dict[str, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None:
            if _is_the_models_own(key, tensor, model):
                continue
            raise BadInput(
                f"adapter '{name}': {WEIGHTS} holds '{key}'; served are changes of linear layers "
                "(base_model.model.LAYER.lora_A.weight and lora_B.weight) and nothing else: "
                "merge the adapter into the model",
                field=FIELD,
            )
        sides.setdefault(found["module"], {})[found["side"]] = tensor
    if not sides:
        raise BadInput(f"adapter '{name}': {WEIGHTS} holds no weights", field=FIELD)
    return sides


def _is_the_models_own(key: str, tensor: Tensor, model: PreTrainedModel) -> bool:
    """A copy of an unchanged weight: PEFT saves those of embeddings beside an adapter of them."""
    path = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
    own = dict(model.named_parameters(remove_duplicate=False)).get(path)
    if own is None or own.shape != tensor.shape:
        return False
    return torch.equal(own, tensor.to(device=own.device, dtype=own.dtype))


def _unknown(
    name: str,
    module: str,
    linears: Mapping[str, tuple[int, int]],
    model: PreTrainedModel,
    config: AdapterConfig,
) -> str:
    ends = list(dict.fromkeys(path.rpartition(".")[2] for path in linears))
    shown = ", ".join(ends[:_SHOWN]) + (", ..." if len(ends) > _SHOWN else "")
    return (
        f"adapter '{name}' changes '{module}', which is no linear layer of this "
        f"{type(model).__name__} (there are: {shown}){_made_for(config)}"
    )


def _fitting(
    name: str,
    module: str,
    pair: Mapping[str, Tensor],
    sizes: tuple[int, int],
    config: AdapterConfig,
    model: PreTrainedModel,
    dtype: torch.dtype,
) -> Factors:
    missing = {"A", "B"} - pair.keys()
    if missing:
        raise BadInput(
            f"adapter '{name}': {WEIGHTS} lacks lora_{missing.pop()} of '{module}'", field=FIELD
        )
    rank, (num_in, num_out) = config.rank_of(module), sizes
    seen = tuple(pair["A"].shape), tuple(pair["B"].shape)
    if seen != ((rank, num_in), (num_out, rank)):
        raise BadInput(
            f"adapter '{name}' does not fit this {type(model).__name__}: for '{module}', which "
            f"takes {num_in} numbers and gives {num_out}, rank {rank} needs lora_A "
            f"{(rank, num_in)} and lora_B {(num_out, rank)}; it has {seen[0]} and {seen[1]}"
            f"{_made_for(config)}",
            field=FIELD,
        )
    for side, tensor in pair.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise BadInput(
                f"adapter '{name}': lora_{side} of '{module}' holds NaN or infinity", field=FIELD
            )
    up = pair["B"].float().t() * config.scale_of(module)
    down = pair["A"].to(device=model.device, dtype=dtype).contiguous()
    return Factors(down, up.to(device=model.device, dtype=dtype).contiguous())


def _made_for(config: AdapterConfig) -> str:
    return f"; it says that it was made for {config.base}" if config.base else ""
