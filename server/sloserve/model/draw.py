"""One draw per row from filtered distributions."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sloserve.engine.sampling import SamplingParams

_USUAL = 1e-4
_BLOCK = 64  # the cumulative sum runs over block sums first, then inside one block


def best_tokens(logits: Tensor) -> list[int]:
    """The likeliest token per row, the first of equals. numpy is ten times faster here on CPU."""
    if logits.device.type == "cpu":
        found: list[int] = logits.float().numpy().argmax(-1).tolist()
    else:
        found = logits.argmax(-1).tolist()
    return found


def weigh(logits: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """
    Weights (n, V) of what may be drawn with temperature, top-k, top-p and min-p, from logits (n, V)
    float32; each row's depend on its own logits and parameters alone. They sum to one before
    top-k, top-p and min-p drop some.
    """
    temperature = torch.tensor([s.temperature for s in sampling], device=logits.device)
    weights = (logits / temperature[:, None]).softmax(-1)
    if any(s.top_p < 1.0 or s.top_k > 0 or s.min_p > 0 for s in sampling):
        filtered = keep_likely(weights.cpu().numpy(), sampling)
        weights = torch.from_numpy(filtered).to(weights.device)
    return weights


def invert(weights: Tensor, uniform: NDArray[np.float64]) -> list[int]:
    """
    The token at which the cumulative weight passes uniform * total, in vocabulary order.

    weights (n, V) need not sum to one; a token of weight 0 is never drawn.
    """
    tokens: list[int] = inverted(weights, torch.from_numpy(uniform).to(weights.device)).tolist()
    return tokens


def inverted(weights: Tensor, uniform: Tensor) -> Tensor:
    """`invert` on whatever device: uniform (n,) float64 -> tokens (n,) int64."""
    num_rows, vocabulary = weights.shape
    blocks = -(-vocabulary // _BLOCK)
    if blocks * _BLOCK != vocabulary:
        weights = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - vocabulary))
    weights = weights.view(num_rows, blocks, _BLOCK)
    ends = weights.sum(-1).double().cumsum(-1)  # (n, blocks)
    goal = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, goal, right=True)
    block = block.clamp_max(blocks - 1)
    inside = weights[torch.arange(num_rows, device=weights.device), block[:, 0]].double()
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_min(0)), 0.0)
    steps = inside.cumsum(-1)  # (n, _BLOCK)
    # float32 block sums may round above the float64 steps: stay below the last step
    goal = torch.minimum(goal - before, steps[:, -1:] * (1 - 2.0**-50)).clamp_min(0)
    at = torch.searchsorted(steps, goal, right=True).clamp_max(_BLOCK - 1)
    return (block * _BLOCK + at)[:, 0]


def keep_likely(
    weights: NDArray[np.float32], sampling: Sequence[SamplingParams]
) -> NDArray[np.float32]:
    """
    The weights (n, V), which sum to one, with 0 for what top-k, then top-p, and min-p drop.

    top-p keeps the fewest largest weights whose sum reaches p of what top-k left; ties with the
    last one kept stay. Sorting whole vocabularies is the cost here, so rows whose answer lies
    among the weights above 1e-4 sort those alone.
    """
    size = weights.shape[1]
    top_k = np.array([s.top_k if 0 < s.top_k < size else size for s in sampling])
    top_p = np.array([min(s.top_p, 1.0) for s in sampling])
    min_p = np.array([s.min_p for s in sampling], dtype=np.float32)
    floors = min_p * weights.max(axis=1)
    cut = np.flatnonzero((top_k < size) | (top_p < 1.0))
    if len(cut):
        k, p = top_k[cut], top_p[cut]
        some = weights if len(cut) == len(weights) else weights[cut]
        least, told = _least_kept(_above(some, _USUAL), k, p, off=size)
        if not told.all():
            rest = ~told
            falling = np.sort(some[rest], axis=1)[:, ::-1]
            least[rest], _ = _least_kept(falling, k[rest], p[rest], off=size)
        floors[cut] = np.maximum(floors[cut], least)
    kept: NDArray[np.float32] = np.multiply(weights, weights >= floors[:, None])
    return kept


def _above(weights: NDArray[np.float32], least: float) -> NDArray[np.float32]:
    """The weights above `least`, largest first, padded with zeros to the longest row."""
    mask = weights > least
    counts = mask.sum(axis=1)
    rows = np.zeros((len(weights), max(1, int(counts.max()))), dtype=np.float32)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = weights[mask]
    return np.sort(rows, axis=1)[:, ::-1]


def _least_kept(
    falling: NDArray[np.float32],
    top_k: NDArray[np.int64],
    top_p: NDArray[np.float64],
    *,
    off: int,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """
    The last weight kept per row of weights in falling order, and whether that can be told:
    rows may hold only the largest weights, then zeros. `off` is the top-k that drops nothing.
    """
    width = falling.shape[1]
    sums = falling.cumsum(axis=1, dtype=np.float64)
    inside = top_k <= width
    last = np.minimum(top_k, width)[:, None] - 1  # of those that top-k leaves
    left = np.where(inside, np.take_along_axis(sums, last, axis=1)[:, 0], 1.0)
    reaching = (sums < (top_p * left)[:, None]).sum(axis=1)[:, None]  # the first that reaches p
    at = np.where(top_p[:, None] < 1.0, np.minimum(reaching, last), last)
    told = np.where(
        inside,
        np.take_along_axis(falling, last, axis=1)[:, 0] > 0,
        (top_k == off) & (sums[:, -1] >= top_p),
    )
    return np.take_along_axis(falling, at, axis=1)[:, 0], told
