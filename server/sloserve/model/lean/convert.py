"""Modules of a model replaced by lean ones, wherever those give the same numbers."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sloserve.model.lean.attention import LeanAttention, lean_attentions
from sloserve.model.lean.kernels import LayerKernels
from sloserve.model.lean.mlp import LeanMlp, lean_mlps
from sloserve.model.lean.norm import LeanNorm, ways_to_norm
from sloserve.model.lean.record import Call, Heads, Record, record, same
from sloserve.model.structure import AttentionLayer

_log = logging.getLogger(__name__)


def make_lean(
    model: PreTrainedModel,
    layers: Sequence[AttentionLayer],
    kernels: LayerKernels,
    *,
    max_model_len: int,
) -> dict[str, int]:
    """
    Replace what can be replaced in a model on CPU; how many of each kind, by its class name.

    `layers` are what its layers ask of attention. Each replacement is compared with what its
    module gave in a forward pass; their weights are packed, so `pack_linears` leaves them alone.
    """
    names = [name for name, module in model.named_modules() if _may_be_replaced(module)]
    seen = record(model, names, max_model_len=max_model_len)
    counts: dict[str, int] = {}
    inside = " "  # of what was replaced last, by its name
    for name in names:  # a parent is before its children
        if name.startswith(inside):
            continue
        with torch.inference_mode():
            found = _replacement(name, model.get_submodule(name), layers, kernels, seen)
        if found is not None:
            model.set_submodule(name, found)  # frees the old weights
            inside = f"{name}."
            counts[type(found).__name__] = counts.get(type(found).__name__, 0) + 1
    return counts


def _may_be_replaced(module: nn.Module) -> bool:
    """Attention, gated MLPs, norms: the rest is not looked at."""
    return (
        isinstance(getattr(module, "layer_idx", None), int)
        or hasattr(module, "down_proj")
        or (not list(module.children()) and hasattr(module, "weight"))
    )


def _replacement(
    name: str,
    module: nn.Module,
    layers: Sequence[AttentionLayer],
    kernels: LayerKernels,
    seen: Record,
) -> nn.Module | None:
    """The first candidate that does as the module did."""
    call = seen.only_call(name)
    if call is None:
        return None
    for candidate, agrees in _candidates(module, layers, kernels, seen):
        try:
            if agrees(call):
                return candidate
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            _log.debug("%s is no %s: %s", type(module).__name__, type(candidate).__name__, error)
    return None


def _candidates(
    module: nn.Module, layers: Sequence[AttentionLayer], kernels: LayerKernels, seen: Record
) -> Iterator[tuple[nn.Module, Callable[[Call], bool]]]:
    number = getattr(module, "layer_idx", None)
    heads = seen.heads.get(number, []) if isinstance(number, int) else []
    if len(heads) == 1 and isinstance(number, int):
        for attention in lean_attentions(module, layers[number], kernels):
            yield attention, _attention_agrees(attention, heads[0])
    for mlp in lean_mlps(module, kernels):
        yield mlp, _maps_alike(mlp)
    for way in ways_to_norm(module):
        norm = LeanNorm(way, kernels)
        yield norm, _maps_alike(norm)


def _maps_alike(candidate: LeanMlp | LeanNorm) -> Callable[[Call], bool]:
    """A module of one tensor."""

    def agrees(call: Call) -> bool:
        given = [*call.args, *call.kwargs.values()]
        if len(given) != 1 or not isinstance(call.output, Tensor):
            return False
        return given[0].dtype is call.output.dtype and same(candidate(given[0]), call.output)

    return agrees


def _attention_agrees(candidate: LeanAttention, seen: Heads) -> Callable[[Call], bool]:
    """Attention is given the same by both, and makes the same of what comes back."""

    def agrees(call: Call) -> bool:
        if call.args or not isinstance(call.output, tuple) or len(call.output) != 2:
            return False
        positions = call.kwargs.get("position_embeddings")
        query, key, value = candidate.heads(call.kwargs["hidden_states"], positions)
        return (
            same(query, seen.query)
            and same(key, seen.key)
            and same(value, seen.value)
            and same(candidate.out(seen.out.flatten(1)[None]), call.output[0])
        )

    return agrees
