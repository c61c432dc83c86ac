"""The clock that everything in a replica is timed by: real, or virtual."""

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds."""

    def now_s(self) -> float:
        """The time now; only differences mean something."""
        ...

    def sleep_until(self, at_s: float) -> None:
        """Return at `at_s`, or at once when that is past."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def sleep_until(self, at_s: float) -> None:
        """Sleep; other threads run meanwhile."""
        left_s = at_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)


class VirtualClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """The virtual time."""
        return self._now_s

    def sleep_until(self, at_s: float) -> None:
        """Jump there; never back."""
        self._now_s = max(self._now_s, at_s)
