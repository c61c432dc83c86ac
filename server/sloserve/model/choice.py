"""Which attention path a model gets."""

import logging
from collections.abc import Sequence

import torch

from sloserve.errors import BadInput
from sloserve.model.compiled import load_compiled
from sloserve.model.compiler import NotCompiled
from sloserve.model.gathered import Gathered
from sloserve.model.kv import LayerShape
from sloserve.model.path import AttentionPath
from sloserve.model.profile import cache_folder

_log = logging.getLogger(__name__)


def choose_path(
    asked: str, *, device: torch.device, dtype: torch.dtype, layers: Sequence[LayerShape]
) -> AttentionPath:
    """
    The path that is asked for: `torch`, `compiled`, or the fastest that can be had here (`auto`).

    May take seconds, to compile. Raises BadInput for one that was asked for by name and can't be
    had; `auto` says so in the log and takes torch's kernels.
    """
    if asked == "torch" or (asked == "auto" and device.type != "cpu"):
        return Gathered()
    if device.type != "cpu":
        raise BadInput("compiled is for cpu; allowed here: auto, torch", field="engine.attention")
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
