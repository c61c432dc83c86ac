"""What the modules of a model were given and gave in one real forward pass."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sloserve.model.structure import use_attention

_NAME = "lean_record"
NUM_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True, slots=True)
class Heads:
    """What attention was given, (heads, P, size) each, and what it gave, (P, heads, size)."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


@dataclass(slots=True)
class Record:
    """Calls by the name of a module, and of attention by layer."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    heads: dict[int, list[Heads]] = field(default_factory=dict)

    def only_call(self, name: str) -> Call | None:
        """The call of a module that was called exactly once."""
        found = self.calls.get(name, [])
        return found[0] if len(found) == 1 else None


_running: list[Record] = []


def _record_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **_: object,
) -> tuple[Tensor, None]:
    """Numbers without a meaning, as large as values are."""
    heads, tokens = query.shape[1:3]
    noise = torch.randn(tokens, heads, value.shape[3], generator=torch.Generator().manual_seed(7))
    out = (noise * value.float().std()).to(query.dtype)
    layer: int = module.layer_idx  # type: ignore[assignment]
    seen = Heads(query[0].clone(), key[0].clone(), value[0].clone(), out)
    _running[-1].heads.setdefault(layer, []).append(seen)
    return out[None].clone(), None


AttentionInterface.register(_NAME, _record_attention)


def record(model: PreTrainedModel, names: Iterable[str], *, max_model_len: int) -> Record:
    """
    The calls of the modules of those names while a dozen random tokens, at positions from the
    first to the last that is allowed, go through the model. Attention proper is not computed.
    """
    generator = torch.Generator().manual_seed(21)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, NUM_TOKENS), generator=generator)
    positions = torch.linspace(0, max_model_len - 1, NUM_TOKENS).long()[None]
    found = Record()
    hooks = [
        model.get_submodule(name).register_forward_hook(
            partial(_keep, found.calls.setdefault(name, [])), with_kwargs=True
        )
        for name in names
    ]
    use_attention(model, _NAME)
    _running.append(found)
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=positions, use_cache=False)
    finally:
        _running.pop()
        for hook in hooks:
            hook.remove()
    return found


def _keep(
    calls: list[Call],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    calls.append(Call(_copied(args), _copied(kwargs), _copied(output)))


def _copied(value: Any) -> Any:
    """Tensors that nobody changes later."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_copied(one) for one in value)
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return value


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by no more than rounding, in their dtype."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    limit = 1e-5 if expected.dtype is torch.float32 else 2e-2
    largest = float(expected.abs().max())
    return float((found.float() - expected.float()).abs().max()) <= limit * max(largest, 1e-20)
