"""
How long answers get: the empirical law of one class, asked conditionally on tokens so far.

Lengths are counted in buckets that grow by an eighth, so the size is bounded; old observations
fade. Before data a prior speaks: a discretised log-normal (median 128 tokens, sigma 1) that is
worth a few observations, and keeps a thin tail for lengths never seen.
"""

from bisect import bisect_right
from math import erf, inf, log, sqrt

PRIOR_MEDIAN_TOKENS = 128.0
PRIOR_SIGMA = 1.0
PRIOR_WEIGHT = 5.0
MAX_TOKENS = 1 << 20
FADE_WEIGHT = 2000.0
"""Above this total weight all counts are halved: the law follows a changing load."""


def _edges() -> tuple[int, ...]:
    """First lengths of the buckets: 1, 2, ... 8, 9, 10, ... then by an eighth."""
    edges = [1]
    while edges[-1] < MAX_TOKENS:
        edges.append(edges[-1] + max(1, edges[-1] // 8))
    return tuple(edges)


EDGES = _edges()


def _prior() -> list[float]:
    def below(n: float) -> float:
        return 0.5 * (1 + erf(log(n / PRIOR_MEDIAN_TOKENS) / (PRIOR_SIGMA * sqrt(2))))

    uppers = [*EDGES[1:], inf]
    return [
        (1.0 if upper == inf else below(upper - 0.5)) - (0.0 if lower == 1 else below(lower - 0.5))
        for lower, upper in zip(EDGES, uppers, strict=True)
    ]


_PRIOR = _prior()


class LengthLaw:
    """
    The output lengths (tokens) of one class. `observe` learns one; `conditional` answers in
    O(log buckets) from suffix sums that are renewed at most once per REFRESH observations.
    """

    REFRESH = 8

    def __init__(self, *, prior_weight: float = PRIOR_WEIGHT) -> None:
        self._counts = [prior_weight * p for p in _PRIOR]
        self._means = [  # mean length inside each bucket
            (lower + upper - 1) / 2
            for lower, upper in zip(EDGES, (*EDGES[1:], EDGES[-1] + 1), strict=True)
        ]
        self._weight = prior_weight
        self._stale = self.REFRESH
        self._suffix: list[tuple[float, float, float]] = []

    def observe(self, length: int) -> None:
        """Learn the length of an answer that ended by itself or at its limit."""
        self._counts[bisect_right(EDGES, max(1, min(length, MAX_TOKENS))) - 1] += 1.0
        self._weight += 1.0
        self._stale += 1
        if self._weight > FADE_WEIGHT:
            self._counts = [count / 2 for count in self._counts]
            self._weight /= 2

    def conditional(self, n_so_far: int, max_left: int) -> tuple[float, float]:
        """
        Mean and standard deviation of the tokens still to come, given more than `n_so_far`;
        both cut at `max_left`.
        """
        if max_left <= 1:
            return 1.0, 0.0
        if self._stale >= self.REFRESH:
            self._renew()
        first = bisect_right(EDGES, n_so_far)  # buckets that start after n_so_far
        weight, total, square = self._suffix[first]
        if first > 0:
            # the rest of the bucket that n_so_far lies in
            lower, upper = EDGES[first - 1], EDGES[first] if first < len(EDGES) else MAX_TOKENS + 1
            inside = max(0, upper - 1 - n_so_far)
            if inside:
                count = self._counts[first - 1] * inside / (upper - lower)
                mean = (n_so_far + upper) / 2
                weight, total, square = (
                    weight + count,
                    total + count * mean,
                    square + count * mean * mean,
                )
        if weight <= 0.0:
            return float(min(max_left, 1 + n_so_far)), 0.0
        mean = total / weight
        sd = sqrt(max(0.0, square / weight - mean * mean))
        left = max(1.0, mean - n_so_far)
        if left >= max_left:
            return float(max_left), 0.0
        return left, min(sd, max_left - left)

    def _renew(self) -> None:
        weight = total = square = 0.0
        suffix = [(0.0, 0.0, 0.0)]
        for count, mean in zip(reversed(self._counts), reversed(self._means), strict=True):
            weight += count
            total += count * mean
            square += count * mean * mean
            suffix.append((weight, total, square))
        suffix.reverse()
        self._suffix = suffix
        self._stale = 0
