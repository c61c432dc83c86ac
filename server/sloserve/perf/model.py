"""
How long a step takes.

    T(step) = max(w + a0*m, c1 + a1*m) + b*K + d*A + k2*s

m = tokens in the batch, K = sum of decode contexts, A = prefill attention pairs
(sum over chunks of n*(prior + n/2)), s = serial draft steps. Times in seconds.
"""

import math
from dataclasses import dataclass


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

        The positive root of each affine piece's quadratic, the least of them; O(1). 0 when
        nothing fits.
        """
        rest_s = time_s - self.b * context - self.d * pairs
        least = math.inf
        for base, slope in ((self.w, self.a0), (self.c1, self.a1)):
            room_s = rest_s - base - slope * num_tokens
            if room_s < 0:
                return 0
            linear, quadratic = slope + self.d * prior, self.d / 2
            if quadratic > 0:
                root = (math.sqrt(linear * linear + 4 * quadratic * room_s) - linear) / (
                    2 * quadratic
                )
            elif linear > 0:
                root = room_s / linear
            else:
                continue
            least = min(least, root)
        return int(min(least, 2**31))

    def scaled(self, factor: float) -> "StepModel":
        """The same model with every time multiplied by `factor` (online correction)."""
        return StepModel(*(factor * getattr(self, name) for name in self.__slots__))
