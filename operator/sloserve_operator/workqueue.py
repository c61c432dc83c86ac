"""Services that need a look: each key once, never twice at a time, with its own patience."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable

from sloserve.errors import SloserveError
from sloserve.logs import bind
from sloserve_operator.api import Key

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0
MIN_INTERVAL_S = 0.25
"""Between two looks at one service: two operators that disagree must not run hot."""

Work = Callable[[Key], Awaitable[float | None]]
"""Look at one service; seconds after which to look again, or None."""


class WorkQueue:
    """
    A set of keys to work on. A key added while it is worked on is worked on once more.

    A failure is repeated after 0.5 s, doubling up to 60 s; a success forgets that.
    """

    def __init__(self, *, min_interval_s: float = MIN_INTERVAL_S) -> None:
        self._min_interval_s = min_interval_s
        self._dirty: dict[Key, None] = {}
        self._active: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._done_s: dict[Key, float] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._dirty)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is worked on (timers aside)."""
        return not self._dirty and not self._active

    def add(self, key: Key) -> None:
        """Look at this service soon."""
        loop = asyncio.get_running_loop()
        wait_s = self._done_s.get(key, -1e9) + self._min_interval_s - loop.time()
        if wait_s > 0 and key not in self._active:
            self.add_after(key, wait_s)
            return
        self._dirty[key] = None
        self._wake.set()

    def add_after(self, key: Key, delay_s: float) -> None:
        """Look at it in a while, or earlier if that was said before."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + delay_s:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_later(delay_s, self._due, key)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._dirty[key] = None
        self._wake.set()

    async def run(self, work: Work, *, num_workers: int) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(num_workers):
                    group.create_task(self._worker(work))
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _worker(self, work: Work) -> None:
        while True:
            key = next((k for k in self._dirty if k not in self._active), None)
            if key is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            del self._dirty[key]
            self._active.add(key)
            bind(service=f"{key.namespace}/{key.name}")
            try:
                again_s = await work(key)
                self._failures.pop(key, None)
            except SloserveError as error:
                again_s = self._retry_s(key)
                log.warning("failed", extra={"error": error.message, "again_s": again_s})
            except Exception:
                again_s = self._retry_s(key)
                log.exception("failed", extra={"again_s": again_s})
            finally:
                self._active.discard(key)
                self._done_s[key] = asyncio.get_running_loop().time()
            if key in self._dirty:  # it came while we worked
                del self._dirty[key]
                self.add(key)
            elif again_s is not None:
                self.add_after(key, again_s)
            self._wake.set()

    def _retry_s(self, key: Key) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        longest_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 10))
        return longest_s * random.uniform(0.75, 1.0)

    def forget_others(self, keys: Iterable[Key]) -> None:
        """These are all services there are: nothing is kept of others."""
        alive = set(keys)
        for gone in (self._done_s.keys() | self._failures.keys()) - alive - self._active:
            self._failures.pop(gone, None)
            self._done_s.pop(gone, None)
