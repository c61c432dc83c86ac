"""How long a token takes from the engine's emission to the client's socket."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable

NUM_TOKENS = 1024
"""The latest tokens that count."""
WINDOW_S = 10.0
"""And only so long: a hiccup must not make the planner timid for ever."""
EVERY = 64
"""Tokens between two words to the planner, which subtracts the figure from every deadline."""
IDLE_FACTOR = 0.5
"""Without any token the figure shrinks by this at every `settle`."""


class WayOut:
    """
    A p99 over a sliding window, told to `tell`. Seconds, on the engine's clock.

    The lags are kept in order of size as well: a token costs two moves in a list of a thousand
    numbers, and no word to the planner costs a sort.
    """

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._tokens: deque[tuple[float, float]] = deque()  # (when, lag), the oldest first
        self._ranked: list[float] = []  # the lags of the same, the least first
        self._num_new = 0
        self.p99_s = 0.0

    def took(self, lag_s: float, *, now_s: float) -> None:
        """One token was written `lag_s` after its emission."""
        if len(self._tokens) == NUM_TOKENS:
            self._drop_oldest()
        self._tokens.append((now_s, lag_s))
        insort(self._ranked, lag_s)
        self._num_new += 1
        if self._num_new >= EVERY:
            self.settle(now_s)

    def settle(self, now_s: float) -> None:
        """
        Renew the figure; also called about once a second, so that it falls when nothing flows.

        Otherwise a large figure could decline every request, and never be measured again.
        """
        self._num_new = 0
        tokens = self._tokens
        while tokens and tokens[0][0] < now_s - WINDOW_S:
            self._drop_oldest()
        if tokens:
            self.p99_s = max(0.0, self._ranked[math.ceil(0.99 * len(tokens)) - 1])
        else:
            self.p99_s *= IDLE_FACTOR
        self._tell(self.p99_s)

    def _drop_oldest(self) -> None:
        _, lag_s = self._tokens.popleft()
        del self._ranked[bisect_left(self._ranked, lag_s)]
