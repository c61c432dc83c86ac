"""Which kernels compute attention on a GPU: by what is installed and what the model asks."""

import logging
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import torch

from sloserve.errors import BadInput
from sloserve.model.cuda_flash import FlashPath
from sloserve.model.gathered import Gathered
from sloserve.model.kv import LayerShape
from sloserve.model.path import AttentionPath
from sloserve.model.terms import Terms
from sloserve.model.triton_attention import TritonPath

_log = logging.getLogger(__name__)

ORDER = (FlashPath.name, TritonPath.name, Gathered.name)
"""Whoever installed flash-attn, which has no wheels on PyPI, wants it; ours needs no build."""


def choose_cuda_path(
    asked: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[LayerShape],
    terms: Sequence[Terms],
) -> AttentionPath:
    """
    The path that is asked for, or with `auto` the first of ORDER that is here and can compute this
    model; the log says which, and why not those before it.

    Raises BadInput for one that was asked for by name and can't.
    """
    reasons: list[str] = []
    for name in ORDER if asked == "auto" else (asked,):
        reason = _why_not(name, dtype=dtype, layers=layers, terms=terms)
        if reason is None:
            try:
                path = _make(name, device)
            except (ImportError, OSError, AttributeError) as error:  # built for another torch, say
                reason = f"it is installed, but can't be imported: {error}"
            else:
                _log.info("attention on %s: %s", device, "; ".join([name, *reasons]))
                return path
        reasons.append(f"not {name}: {reason}")
    raise BadInput(
        f"attention by {asked} can't be had: {reason}; allowed on cuda: auto, {', '.join(ORDER)}",
        field="engine.attention",
    )


def _why_not(
    name: str, *, dtype: torch.dtype, layers: Sequence[LayerShape], terms: Sequence[Terms]
) -> str | None:
    if name == FlashPath.name:
        if find_spec("flash_attn") is None:
            return "it is not installed"
        return FlashPath.why_not(layers, terms, dtype)
    if name == TritonPath.name:
        return "it is not installed" if find_spec("triton") is None else None
    return None if name == Gathered.name else "it is for another device"


def _make(name: str, device: torch.device) -> AttentionPath:
    """Imports what only this path needs."""
    if name == FlashPath.name:
        return FlashPath(import_module("flash_attn").flash_attn_varlen_func)
    if name == TritonPath.name:
        kernels = import_module("sloserve.model.triton_kernel")
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        return TritonPath(kernels, num_processors=processors)
    return Gathered()
