"""
The highest rate that holds: a search over windows that somebody else runs.

Sans I/O: ask `next_rate`, run a window there, `tell` its attainment; the same code searches on a
virtual clock and against a real endpoint, and continues from windows read from a file.
"""

import math
from dataclasses import dataclass, field

GROWTH = 1.5
MAX_STEPS = 10
"""Geometric steps in one direction; a start more than 50 times off is given up."""


@dataclass(slots=True)
class Search:
    """
    Geometric steps until the rate is bracketed, then bisection to `tolerance` (relative).

    Attainment falls with the rate but for noise: a rate told twice counts with its mean, and
    what held above the lowest rate that failed is ignored. The winner is confirmed by a second
    window; where that fails, the search goes on below.
    """

    start: float  # requests/s
    target: float = 0.9
    tolerance: float = 0.02
    max_windows: int = 40
    confirm: bool = True
    tried: list[tuple[float, float]] = field(default_factory=list)

    def next_rate(self) -> float | None:
        """The rate of the next window; None when found (or given up)."""
        if len(self.tried) >= self.max_windows:
            return None
        held, failed = self._bracket()
        if held is None or failed is None:
            if len(self.tried) > MAX_STEPS:
                return None
            if held is not None:
                return held * GROWTH
            return failed / GROWTH if failed is not None else self.start
        if failed / held > 1 + self.tolerance:
            return math.sqrt(failed * held)
        if self.confirm and not self.confirmed:
            return held
        return None

    def tell(self, rate: float, attainment: float) -> None:
        """The attainment (share) of a window at `rate`."""
        self.tried.append((rate, attainment))

    @property
    def rate(self) -> float:
        """The highest rate that held; 0 when none did."""
        return self._bracket()[0] or 0.0

    @property
    def confirmed(self) -> bool:
        """Whether that rate held over more than one window."""
        return sum(rate == self.rate for rate, _ in self.tried) > 1

    @property
    def found(self) -> bool:
        """Whether the rate is bracketed as closely as asked."""
        held, failed = self._bracket()
        if held is None or failed is None:
            return False
        return failed / held <= 1 + self.tolerance

    def _bracket(self) -> tuple[float | None, float | None]:
        means: dict[float, list[float]] = {}
        for rate, attainment in self.tried:
            means.setdefault(rate, []).append(attainment)
        holds = {rate: sum(v) / len(v) >= self.target for rate, v in means.items()}
        failed = min((rate for rate, held in holds.items() if not held), default=None)
        below = math.inf if failed is None else failed
        held = max((rate for rate, held in holds.items() if held and rate < below), default=None)
        return held, failed


def crossing(points: dict[float, float], target: float) -> float | None:
    """
    The rate at which attainment falls through `target`, by straight lines between points.

    `points` maps rate to attainment; the last crossing downwards counts. None when every point
    is on one side.
    """
    rates = sorted(points)
    for low, high in zip(reversed(rates[:-1]), reversed(rates[1:]), strict=True):
        a, b = points[low], points[high]
        if a >= target > b:
            return low + (high - low) * (a - target) / (a - b)
    return None
