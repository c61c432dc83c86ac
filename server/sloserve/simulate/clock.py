"""Virtual time: things to do, in order of when."""

import heapq
from collections.abc import Callable


class EventLoop:
    """Runs callbacks in order of time; equal times in the order they were set."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Call back at `time_s`, or now if that is past."""
        self._count += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), self._count, callback))

    def run(self, *, until_s: float, is_done: Callable[[], bool]) -> None:
        """Go on until it is done, nothing is left, or `until_s` has come."""
        heap = self._heap
        while heap and not is_done():
            time_s, _, callback = heapq.heappop(heap)
            if time_s > until_s:
                self.now_s = until_s
                return
            self.now_s = time_s
            callback()
