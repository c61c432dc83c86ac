"""
Where requests wait for a replica: woken by every report, those due first go first.

When very many wait, a report wakes only some of them, those that were woken least often: asking
the router for all would take longer than the reports are apart.
"""

import asyncio
import itertools

from sloserve.errors import Declined, Reason

MAX_PENDING = 2048
MAX_WOKEN = 256
COALESCE_S = 0.03
"""Reports of several replicas that come together wake the waiting once."""


class WaitingRoom:
    """Requests that nobody can take now. Bounded: beyond `max_pending` they are declined."""

    def __init__(self, *, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._waiting: dict[asyncio.Future[None], tuple[int, float, int]] = {}
        self._count = itertools.count()
        self._bell: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def ring(self) -> None:
        """A report came: wake everybody shortly."""
        if self._waiting and self._bell is None:
            self._bell = asyncio.get_running_loop().call_later(COALESCE_S, self._wake)

    def _wake(self) -> None:
        self._bell = None
        woken = sorted(self._waiting.items(), key=lambda item: item[1])[:MAX_WOKEN]
        for future, _ in sorted(woken, key=lambda item: item[1][1:]):
            if not future.done():
                future.set_result(None)

    async def wait(self, *, due_s: float, timeout_s: float, num_before: int = 0) -> None:
        """
        Wait for the next report, at most `timeout_s`; earlier `due_s` is woken earlier.

        `num_before` says how often it waited already. Raises Declined when too many wait already.
        """
        if len(self._waiting) >= self._max_pending:
            raise Declined(
                Reason.QUEUE_FULL,
                f"{len(self._waiting)} requests wait for a replica already",
                retry_after_s=1.0,
            )
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = (num_before, due_s, next(self._count))
        try:
            await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            pass
        finally:
            del self._waiting[future]
