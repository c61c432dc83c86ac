"""
Which drafts are kept, so that what comes out is distributed as if there had been none.

A proposal that is certain (n-gram, greedy draft) needs no test of its own: at every position the
token is drawn as ever, and drafts are kept as far as they are what was drawn. The chance to keep
draft x is p(x), as rejection sampling has it, and the tokens are the very ones that would have
come without drafts, seeds included.

A draft x drawn from a distribution q is kept with probability min(1, p(x) / q(x)); at the first
one that is not, a token is drawn from max(0, p - q), which is no draft any more (Leviathan et al.,
2023; Chen et al., 2023).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sloserve.model.draw import invert


def num_equal(drawn: Sequence[int], drafts: Sequence[int]) -> int:
    """Drafts kept when the tokens `drawn` at their positions, as far as known, are what counts."""
    num = 0
    for token, draft in zip(drawn, drafts, strict=False):
        if token != draft:
            break
        num += 1
    return num


def keep_or_redraw(
    target: Tensor,
    proposed: Tensor,
    drafts: Sequence[Sequence[int]],
    *,
    keep: NDArray[np.float64],
    draw: NDArray[np.float64],
) -> list[tuple[int, int]]:
    """
    (drafts kept, the token after them) for every request with drafts.

    For n drafts of one request `target` has n + 1 rows and `proposed` n, (rows, V): weights that
    sum to one, the latter those the drafts were drawn from. `keep` has a uniform number per draft,
    `draw` one per row of `target`.
    """
    tokens = [token for some in drafts for token in some]
    firsts, begin = [], 0  # of each request: its first row in `target`
    for some in drafts:
        firsts.append(begin)
        begin += len(some) + 1
    places = [
        first + j for first, some in zip(firsts, drafts, strict=True) for j in range(len(some))
    ]
    index = torch.tensor([places, tokens], device=target.device)
    wanted = target[index[0], index[1]].double().cpu().numpy()
    given = proposed.gather(1, index[1][:, None])[:, 0].double().cpu().numpy()
    refused = keep * given >= wanted  # u >= p / q; always for p = 0
    kept, ends, at = [], [], 0
    for first, some in zip(firsts, drafts, strict=True):
        mine = refused[at : at + len(some)]
        num = int(mine.argmax()) if mine.any() else len(some)
        kept.append(num)
        ends.append((first + num, at + num if num < len(some) else -1))
        at += len(some)
    weights = target[[row for row, _ in ends]]
    redrawn = [i for i, (_, row) in enumerate(ends) if row >= 0]
    if redrawn:
        rest = (weights[redrawn] - proposed[[ends[i][1] for i in redrawn]]).clamp_min(0)
        # nothing is left where p = q but for rounding: then a draw from either is as good
        weights[redrawn] = torch.where(rest.sum(-1, keepdim=True) > 0, rest, weights[redrawn])
    return list(zip(kept, invert(weights, draw[[row for row, _ in ends]]), strict=True))
