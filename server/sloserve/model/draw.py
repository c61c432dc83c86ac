"""One draw per row from filtered distributions."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sloserve.engine.sampling import SamplingParams

_BLOCK = 64  # the cumulative sum runs over block sums first, then inside one block


def best_tokens(logits: Tensor) -> list[int]:
    """The likeliest token per row, the first of equals. numpy is ten times faster here on CPU."""
    if logits.device.type == "cpu":
        found: list[int] = logits.float().numpy().argmax(-1).tolist()
    else:
        found = logits.argmax(-1).tolist()
    return found


def draw_tokens(
    logits: Tensor, sampling: Sequence[SamplingParams], uniform: NDArray[np.float64]
) -> list[int]:
    """
    Tokens drawn with temperature, top-k, top-p and min-p. logits (n, V) float32, uniform (n,).

    A row's outcome depends on its own logits, parameters and number alone.
    """
    temperature = torch.tensor([s.temperature for s in sampling], device=logits.device)
    weights = (logits / temperature[:, None]).softmax(-1)
    cut = [i for i, s in enumerate(sampling) if s.top_p < 1.0 or s.top_k > 0]
    if cut:
        some = weights if len(cut) == len(sampling) else weights[cut]
        least = _least_kept(some, [sampling[i] for i in cut])
        if len(cut) == len(sampling):
            weights *= weights >= least[:, None]
        else:
            floor = torch.zeros(len(sampling), device=weights.device)
            floor[cut] = least
            weights *= weights >= floor[:, None]
    if any(s.min_p > 0 for s in sampling):
        min_p = torch.tensor([s.min_p for s in sampling], device=weights.device)
        weights *= weights >= (min_p * weights.amax(-1))[:, None]
    return invert(weights, uniform)


def invert(weights: Tensor, uniform: NDArray[np.float64]) -> list[int]:
    """
    The token at which the cumulative weight passes uniform * total, in vocabulary order.

    weights (n, V) need not sum to one; a token of weight 0 is never drawn.
    """
    num_rows, vocabulary = weights.shape
    blocks = -(-vocabulary // _BLOCK)
    if blocks * _BLOCK != vocabulary:
        weights = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - vocabulary))
    weights = weights.view(num_rows, blocks, _BLOCK)
    ends = weights.sum(-1).double().cumsum(-1)  # (n, blocks)
    goal = torch.from_numpy(uniform).to(weights.device)[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, goal, right=True)
    block = block.clamp_max(blocks - 1)
    inside = weights[torch.arange(num_rows, device=weights.device), block[:, 0]].double()
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_min(0)), 0.0)
    steps = inside.cumsum(-1)  # (n, _BLOCK)
    # float32 block sums may round above the float64 steps: stay below the last step
    goal = torch.minimum(goal - before, steps[:, -1:] * (1 - 2.0**-50)).clamp_min(0)
    at = torch.searchsorted(steps, goal, right=True).clamp_max(_BLOCK - 1)
    tokens: list[int] = (block * _BLOCK + at)[:, 0].tolist()
    return tokens


def _least_kept(weights: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """
    The smallest weight that top-k and then top-p keep, per row; ties with it stay.

    top-p keeps the fewest largest weights whose sum reaches p of what top-k left. Sorting a whole
    vocabulary is the cost here, so only weights that can be kept at all are sorted.
    """
    least = [
        _least_kept_of(row, s.top_k, s.top_p)
        for row, s in zip(weights.cpu().numpy(), sampling, strict=True)
    ]
    return torch.tensor(least, dtype=weights.dtype, device=weights.device)


def _least_kept_of(weights: NDArray[np.float32], top_k: int, top_p: float) -> float:
    size = len(weights)
    if 0 < top_k < size:
        weights = np.partition(weights, size - top_k)[size - top_k :]
    elif top_p < 1.0:
        # weights of (1 - p) / V and below have no more than 1 - p together: none is kept
        weights = weights[weights > (1.0 - top_p) / size * 0.999]
    ascending = np.sort(weights)
    if top_p >= 1.0:
        return float(ascending[0])
    total = 1.0 if top_k == 0 or top_k >= size else float(ascending.sum(dtype=np.float64))
    above = ascending[::-1].cumsum(dtype=np.float64)
    kept = min(int(np.searchsorted(above, top_p * total)) + 1, len(ascending))
    return float(ascending[-kept])
