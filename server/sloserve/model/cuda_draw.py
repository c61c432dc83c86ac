"""Drawing without leaving the device: what `draw` does on the host, over whole vocabularies."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sloserve.engine.sampling import SamplingParams
from sloserve.model.draw import inverted

_MOST_BITS = 0x3F800040  # a little above 1.0 in float32: no weight is larger


def draw_on_device(
    logits: Tensor,
    sampling: Sequence[SamplingParams],
    *,
    drawn: Sequence[int],
    uniform: NDArray[np.float64],
) -> list[int]:
    """
    One token per row of logits (n, V) float32: the rows `drawn` by `sampling` and `uniform`, one
    of each for every such row, the others their likeliest.

    As `draw.weigh` and `draw.invert`. One small copy to the device, and one back, which waits for
    it.
    """
    size = logits.shape[1]
    given = torch.tensor(
        np.array(
            [
                drawn,
                [s.temperature for s in sampling],
                [s.top_k if 0 < s.top_k < size else size for s in sampling],
                [min(s.top_p, 1.0) for s in sampling],
                [s.min_p for s in sampling],
                uniform,
            ]
        )
    )
    if logits.device.type == "cuda":
        given = given.pin_memory()
    at, temperature, top_k, top_p, min_p, numbers = given.to(logits.device, non_blocking=True)
    rows = at.long()
    tokens = logits.argmax(-1)
    weights = (logits[rows] / temperature.float()[:, None]).softmax(-1)
    if any(s.top_p < 1.0 or s.top_k > 0 or s.min_p > 0 for s in sampling):
        weights = keep_likely_on_device(
            weights,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            cut=any(s.top_p < 1.0 or 0 < s.top_k < size for s in sampling),
        )
    tokens[rows] = inverted(weights, numbers)
    found: list[int] = tokens.tolist()
    return found


def keep_likely_on_device(
    weights: Tensor, *, top_k: Tensor, top_p: Tensor, min_p: Tensor, cut: bool
) -> Tensor:
    """
    The weights (n, V) float32, which sum to one, with 0 for what top-k, then top-p, and min-p drop.

    As `draw.keep_likely`: top-p keeps the fewest largest weights whose sum reaches p of what top-k
    left; ties with the last one kept stay. The parameters are (n,) float64: top_k = V and top_p = 1
    drop nothing; `cut` says that some row has others. Nothing is sorted and nothing waits: the
    least weight kept is found by bisection over the bits of a float, 30 sums over the rows.
    """
    floors = min_p.float() * weights.amax(-1)
    if cut:
        least_k = _largest_where(lambda kept: kept.sum(-1) >= top_k, weights)
        above = weights > least_k[:, None]
        # of those that tie with the last one, top-k counts only as many as it has room for
        tied = (top_k - above.sum(-1)) * least_k
        goal = top_p * ((weights * above).sum(-1, dtype=torch.float64) + tied)
        goal = torch.where(top_p < 1.0, goal, torch.inf)
        least_p = _largest_where(
            lambda kept: (weights * kept).sum(-1, dtype=torch.float64) >= goal, weights
        )
        floors = torch.maximum(floors, torch.maximum(least_k, least_p))
    return weights * (weights >= floors[:, None])


def _largest_where(holds: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
    """
    Per row the largest floor for which `holds(weights >= floor)`, (n,); 0 where none does.

    Whatever holds must hold for every lower floor too. Floats of one sign are ordered as their
    bits are.
    """
    low = torch.zeros(weights.shape[0], dtype=torch.int32, device=weights.device)
    high = torch.full_like(low, _MOST_BITS)
    for _ in range(_MOST_BITS.bit_length()):
        middle = low + (high - low + 1) // 2
        held = holds(weights >= middle.view(torch.float32)[:, None])
        low, high = torch.where(held, middle, low), torch.where(held, high, middle - 1)
    return low.view(torch.float32)
