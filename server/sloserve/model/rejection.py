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
    drafts: Sequence[int],
    *,
    keep: NDArray[np.float64],
    draw: NDArray[np.float64],
) -> tuple[int, int]:
    """
    (drafts kept, the token after them) for one request with n drafts.

    target (n + 1, V) and proposed (n, V): weights that sum to one, the latter those the drafts
    were drawn from. `keep` (n,) and `draw` (n + 1,) are uniform numbers of their own.
    """
    index = torch.tensor(drafts, device=target.device)[:, None]
    wanted = target[:-1].gather(1, index)[:, 0].double().cpu().numpy()
    given = proposed.gather(1, index)[:, 0].double().cpu().numpy()
    kept = keep[: len(drafts)] * given < wanted  # u < p / q, and never for p = 0
    num_kept = int(kept.argmin()) if not kept.all() else len(drafts)
    weights = target[num_kept]
    if num_kept < len(drafts):
        rest = (weights - proposed[num_kept]).clamp_min(0)
        # p = q but for rounding: then a draw from either is as good
        weights = rest if float(rest.sum()) > 0 else weights
    token = invert(weights[None], draw[num_kept : num_kept + 1])[0]
    return num_kept, token
