"""
How long a step takes.

    T(step) = max(w + a0*m, c1 + a1*m) + b*K + d*A + k2*s

m = tokens in the batch, K = sum of decode contexts, A = prefill attention pairs
(sum over chunks of n*(prior + n/2)), s = serial draft steps. Times in seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHUNK = 2**31
"""The answer of `max_chunk` when a model lets any chunk fit."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """The coefficients of the step-time model; every one is >= 0. Seconds, and seconds per unit."""

    w: float
    a0: float
    c1: float
    a1: float
    b: float
    d: float
    k2: float = 0.0

    def step_s(
        self, num_tokens: int, *, context: float = 0.0, pairs: float = 0.0, drafts: int = 0
    ) -> float:
        """Seconds for a step of `num_tokens`; `context` is K, `pairs` is A."""
        linear = max(self.w + self.a0 * num_tokens, self.c1 + self.a1 * num_tokens)
        return linear + self.b * context + self.d * pairs + self.k2 * drafts

    def prefill_s(self, num_tokens: int, *, prior: int = 0) -> float:
        """Seconds for one chunk alone: with prior 0 and the whole prompt, the zero-load time."""
        return self.step_s(num_tokens, pairs=num_tokens * (prior + num_tokens / 2))

    def max_chunk(
        self, time_s: float, *, num_tokens: int, context: float, pairs: float, prior: int
    ) -> int:
        """
        The largest chunk that fits beside a batch: T(m + n, K, A + n*(prior + n/2)) <= time.

        Exact: `step_s` of the answer is within `time_s`, of one token more it is not. The least
        positive root of the affine pieces' quadratics, then corrected for rounding (`step_s` is
        monotone as computed, too); O(1) in practice. 0 when nothing fits, MAX_CHUNK at most.
        """
        rest_s = time_s - self.b * context - self.d * pairs
        least = float(MAX_CHUNK)
        for base, slope in ((self.w, self.a0), (self.c1, self.a1)):
            room_s = max(0.0, rest_s - base - slope * num_tokens)
            linear = slope + self.d * prior
            divisor = linear + math.sqrt(linear * linear + 2 * self.d * room_s)
            if divisor > 0:
                least = min(least, 2 * room_s / divisor)

        def fits(n: int) -> bool:
            total = pairs + n * (prior + n / 2)
            return self.step_s(num_tokens + n, context=context, pairs=total) <= time_s

        n = int(least)
        if n < MAX_CHUNK and fits(n + 1):
            return _last(fits, n + 1, MAX_CHUNK + 1)
        if n == 0 or fits(n):
            return n
        return _last(fits, 0, n)

    def scaled(self, factor: float) -> "StepModel":
        """The same model with every time multiplied by `factor` (online correction)."""
        return StepModel(
            w=factor * self.w,
            a0=factor * self.a0,
            c1=factor * self.c1,
            a1=factor * self.a1,
            b=factor * self.b,
            d=factor * self.d,
            k2=factor * self.k2,
        )


def _last(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n in [low, high) that fits, by bisection; `low` is known to, or 0."""
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
