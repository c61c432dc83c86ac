"""Waiting for what a story asserts; never for a time that should be enough."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(ask: Callable[[], T], what: str, *, timeout_s: float = 120, pause_s: float = 0.5) -> T:
    """The first true value of `ask`. AssertionError with `what` and the last value on time-out."""
    end_s = time.monotonic() + timeout_s
    while True:
        value = ask()
        if value:
            return value
        assert time.monotonic() < end_s, f"waited {timeout_s:g} s in vain: {what}; last: {value!r}"
        time.sleep(pause_s)
