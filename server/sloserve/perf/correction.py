"""
What serving teaches about the stored step-time model: a factor, and a margin.

The factor is a moving average of actual/predicted. A single step may not move it as if it were
news: its deviation is cut at 25 % (a straggler of +50 % once in a hundred steps moves the factor
by a quarter of a per cent), until so many in a row deviate that way that it is the machine that
changed. The margin is the 95th percentile of (actual - corrected prediction) over the latest
steps; stragglers lie beyond it. The excess is what steps take beyond their prediction on average,
those that do not counted as 0: the part of the time that a plan over many steps must be able to
make up for.
"""

from bisect import bisect_left, insort
from collections import deque

from sloserve.perf.model import StepModel

RATE = 0.02
MAX_DEVIATION = 0.25
MAX_EXCESS = 2.0  # a step this much longer was an accident: it does not come every few steps
STREAK = 8  # this many deviations in a row on the same side are no stragglers
WINDOW = 512  # latest steps that a margin looks at
MIN_STEPS = 20  # below this many, a margin says nothing of its own
QUANTILE = 0.95


class OnlineCorrection:
    """
    Feed it with every step's prediction *by the stored model* (uncorrected) and what it took.

    `start_margin_s` is the margin while too few steps were seen (the profile's own p95 error,
    say).
    """

    def __init__(self, *, rate: float = RATE, start_margin_s: float = 0.0) -> None:
        self.ratio = 1.0
        """Multiply stored predictions by this (`corrected`)."""
        self.excess_share = 0.0
        """Mean of max(0, actual / corrected prediction - 1), each at most MAX_EXCESS."""
        self.num_steps = 0
        self._rate = rate
        self._streak = 0  # signed: deviations in a row above (+) or below (-)
        self._start_margin_s = start_margin_s
        self._window = _Window()

    def observe(self, predicted_s: float, actual_s: float) -> None:
        """Learn from one step; `predicted_s` is the stored model's, before any correction."""
        if predicted_s <= 0 or actual_s < 0:
            return
        excess_s = actual_s - self.ratio * predicted_s
        self._window.add(excess_s)
        deviation = actual_s / (self.ratio * predicted_s) - 1
        cut = max(-MAX_DEVIATION, min(MAX_DEVIATION, deviation))
        if cut == deviation:
            self._streak = 0
        elif deviation > 0:
            self._streak = max(0, self._streak) + 1
        else:
            self._streak = min(0, self._streak) - 1
        if abs(self._streak) >= STREAK:
            cut = deviation
        self.num_steps += 1
        rate = max(self._rate, 1 / (self.num_steps + 4))
        self.ratio *= 1 + rate * cut
        excess = min(max(0.0, deviation), MAX_EXCESS)
        self.excess_share += rate * (excess - self.excess_share)

    def corrected(self, model: StepModel) -> StepModel:
        """The stored model as it looks on this machine now."""
        return model.scaled(self.ratio)

    @property
    def margin_s(self) -> float:
        """Seconds that 95 of 100 recent steps did not exceed their prediction by; >= 0."""
        if len(self._window) < MIN_STEPS:
            return self._start_margin_s
        return max(0.0, self._window.quantile(QUANTILE))


class _Window:
    """The latest values, in order of time and in order of size."""

    __slots__ = ("_latest", "_ranked")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._ranked: list[float] = []

    def __len__(self) -> int:
        return len(self._ranked)

    def add(self, value: float) -> None:
        if len(self._latest) == WINDOW:
            del self._ranked[bisect_left(self._ranked, self._latest.popleft())]
        self._latest.append(value)
        insort(self._ranked, value)

    def quantile(self, share: float) -> float:
        return self._ranked[min(len(self._ranked) - 1, int(share * len(self._ranked)))]
