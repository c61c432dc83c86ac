"""Which attention path a model gets."""

import logging
from collections.abc import Sequence

import torch

from sloserve.errors import BadInput
from sloserve.model.compiled import load_compiled
from sloserve.model.compiler import NotCompiled
from sloserve.model.cuda_paths import choose_cuda_path
from sloserve.model.gathered import Gathered
from sloserve.model.kv import LayerShape
from sloserve.model.path import AttentionPath
from sloserve.model.profile import cache_folder
from sloserve.model.terms import Terms

_log = logging.getLogger(__name__)


def choose_path(
    asked: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[LayerShape],
    terms: Sequence[Terms] = (),
) -> AttentionPath:
    """
    The path that is asked for (`engine.attention`), or the fastest that can be had here (`auto`).
    `terms` are what the layers ask of attention.

    May take seconds, to compile. Raises BadInput for one that was asked for by name and can't be
    had; `auto` says in the log what it passed over.
    """
    if device.type == "cuda":
        return choose_cuda_path(asked, device=device, dtype=dtype, layers=layers, terms=terms)
    if asked == "torch":
        return Gathered()
    if asked not in ("auto", "compiled"):
        raise BadInput(
            f"{asked} is for another device than cpu; allowed here: auto, torch, compiled",
            field="engine.attention",
        )
    try:
        return load_compiled(dtype=dtype, layers=layers, folder=cache_folder("kernels"))
    except NotCompiled as error:
        if asked != "auto":
            raise BadInput(
                f"the compiled kernel can't be had: {error}; allowed: auto, torch",
                field="engine.attention",
            ) from error
        _log.warning("attention by torch's kernels, the compiled one can't be had: %s", error)
        return Gathered()
