"""
The prompt lengths of a class that would be admitted now: an interval, found by few questions.

Under a slowdown TTFT feasibility can grow with length (a short prompt has no time to wait), so
there are two bounds. A geometric grid finds an admitted length; bisection finds both ends.
"""

from collections.abc import Callable

from sloserve.planner.types import Probe
from sloserve.wire import Frontier

SHORTEST = 1
GRID = 4.0
TOLERANCE = 1 / 16
NOTHING = Frontier(1, 0)


def ttft_s(probe: Probe, num_tokens: int) -> float:
    """The TTFT of a prompt of `num_tokens`."""
    return max(
        probe.ttft_floor_s,
        probe.ttft_fixed_s
        + probe.ttft_per_token_s * num_tokens
        + probe.ttft_per_pair_s * num_tokens * num_tokens / 2,
    )


def interval(admits: Callable[[int], bool], max_prompt: int) -> Frontier:
    """
    The admitted interval up to `max_prompt`, ends within TOLERANCE; about 15 calls of `admits`.

    What is reported as inside was asked or lies between two admitted lengths.
    """
    if max_prompt < 1:
        return NOTHING
    grid, length = [], float(min(SHORTEST, max_prompt))
    while length < max_prompt:
        grid.append(int(length))
        length *= GRID
    grid.append(max_prompt)
    known: dict[int, bool] = {}

    def ask(num_tokens: int) -> bool:
        if num_tokens not in known:
            known[num_tokens] = admits(num_tokens)
        return known[num_tokens]

    inside = [n for n in grid if ask(n)]
    if not inside:
        return NOTHING
    low, high = inside[0], inside[-1]
    if low > grid[0]:
        low = _bisect(ask, bad=max(n for n in grid if n < low), good=low)
    if high < max_prompt:
        high = _bisect(ask, bad=min(n for n in grid if n > high), good=high)
    return Frontier(low, high)


def _bisect(ask: Callable[[int], bool], *, bad: int, good: int) -> int:
    """The good end nearest to `bad`, within TOLERANCE."""
    while abs(good - bad) > max(1, int(good * TOLERANCE)):
        middle = (good + bad) // 2
        if ask(middle):
            good = middle
        else:
            bad = middle
    return good
