"""How long a token takes from the engine's emission to the client's socket."""

from collections.abc import Callable

WINDOW = 1024
"""Tokens whose time is remembered."""
EVERY = 64
"""Tokens between two reports: the planner subtracts this from every deadline."""


class WayOut:
    """A sliding p99, told to `tell` every 64 tokens. Seconds."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._times_s: list[float] = []
        self._at = 0
        self.p99_s = 0.0

    def took(self, lag_s: float) -> None:
        """One token's time from emission to the end of its write."""
        if len(self._times_s) < WINDOW:
            self._times_s.append(lag_s)
        else:
            self._times_s[self._at % WINDOW] = lag_s
        self._at += 1
        if self._at % EVERY == 0:
            ordered = sorted(self._times_s)
            self.p99_s = max(0.0, ordered[int(0.99 * (len(ordered) - 1))])
            self._tell(self.p99_s)
