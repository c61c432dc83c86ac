"""
Random numbers that depend on the request and the position alone.

The number for output token i of a request is output i + 1 of SplitMix64 (Steele, Lea, Flood 2014)
from a state made of the seed. There is no state to keep: the same seed gives the same numbers
whatever else is in the batch, and again after a preemption.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def seed_state(seed: int) -> int:
    """A 64-bit state from any integer, so that seeds 1 and 2 start far apart."""
    z = (seed * _STEP + 0x632BE59BD9B4E019) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniforms(states: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per row, (n,) float64 with 32 random bits."""
    z = np.array(states, dtype=np.uint64)
    z += (np.array(positions, dtype=np.uint64) + np.uint64(1)) * np.uint64(_STEP)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)).astype(np.float64) * 2.0**-32
