"""
Memory is a rate, not a reservation: how many KV blocks will be held at the worst moment?

Output lengths are unknown: every holder has a mean and a standard deviation of the tokens still
to come. Two bounds on the peak of future blocks:

    whole life   sum of every holder's blocks at its own end: holds at any pace
    lock-step    holders decode one token per step, the shortest leave first:
                 max over i of sum_{j <= i} blocks_j + i * left_i / block, j by tokens left, falling

Both get z standard deviations of the sum on top, so P(peak > pool) < epsilon (z = 1.3: 10 %).
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

from sloserve.planner.types import Row


class Holder(NamedTuple):
    """Who holds blocks, or will: tokens now (a prefill's: at its end), and what is to come."""

    tokens: int
    left: float
    variance: float


class Fit(NamedTuple):
    """`fits`: the lock-step peak stays within the pool. `slack`: so does the whole-life sum."""

    fits: bool
    slack: bool


def holder(row: Row) -> Holder:
    """A row as a holder of blocks."""
    left = min(float(row.max_output), row.expected_output)
    return Holder(row.num_known, left, row.expected_sd * row.expected_sd)


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that `num_tokens` take."""
    return -(-num_tokens // block_size)


class Totals(NamedTuple):
    """Sums over holders: whole lives in tokens, variances, and how many they are."""

    life: float
    variance: float
    num_holders: int


def fit(
    running: Totals,
    joining: Sequence[Holder],
    everyone: Callable[[], Sequence[Holder]],
    *,
    num_blocks: int,
    block_size: int,
    z: float,
) -> Fit:
    """
    Whether all may run together. O(joining) while memory is slack; else `everyone` (running and
    joining) is asked for, O(n log n).
    """
    pool = num_blocks * block_size
    spare = block_size - 1  # the part of a last block that nobody uses, at most
    life, variance, num_holders = running
    for tokens, left, var in joining:
        life += tokens + left
        variance += var
    life += spare * (num_holders + len(joining))
    if life + z * sqrt(variance) <= pool:
        return Fit(True, True)
    return Fit(peak_tokens(everyone(), spare=spare, z=z) <= pool, False)


def peak_tokens(holders: Sequence[Holder], *, spare: int = 0, z: float = 0.0) -> float:
    """The lock-step peak in tokens, `spare` added per holder, z standard deviations on top."""
    held, variance, peak = 0.0, 0.0, 0.0
    for count, (tokens, left, var) in enumerate(
        sorted(holders, key=lambda h: h[1], reverse=True), start=1
    ):
        held += tokens + spare
        variance += var
        now = held + left * count + z * sqrt(variance)
        if now > peak:
            peak = now
    return peak
