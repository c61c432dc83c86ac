"""A thread of its own for the steps, so that planning can go on beside them."""

import queue
import threading
from collections.abc import Callable

from sloserve.engine.clock import Clock
from sloserve.engine.runner import Sampled


class Flight:
    """One step under way: what it gives, or what it raises, and when it ended."""

    __slots__ = ("_begun", "_compute", "_ended", "_error", "_landed", "_sampled", "end_s")

    def __init__(self, compute: Callable[[], list[Sampled]], landed: Callable[[], None]) -> None:
        self.end_s = 0.0
        self._begun = threading.Event()
        self._compute = compute
        self._landed = landed
        self._ended = threading.Event()
        self._sampled: list[Sampled] = []
        self._error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether `wait` returns at once."""
        return self._ended.is_set()

    def wait_for_begin(self) -> None:
        """Return when the step's thread is on it, and has the interpreter for a while."""
        self._begun.wait()

    def wait(self) -> list[Sampled]:
        """What the step gave, once it has ended. Raises what it raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._sampled

    def run(self, clock: Clock) -> None:
        """Compute the step here and now."""
        self._begun.set()
        try:
            self._sampled = self._compute()
        except BaseException as error:
            self._error = error
        self.end_s = clock.now_s()
        self._ended.set()
        self._landed()


class Stepper:
    """Runs one step after the other, in one thread: a runner never sees two."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flights: queue.SimpleQueue[Flight | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sloserve-step", daemon=True)
        self._thread.start()

    def start(self, compute: Callable[[], list[Sampled]], *, landed: Callable[[], None]) -> Flight:
        """
        Begin a step; `landed` is called in the step's thread when it has ended.

        Returns when the step is under way: a caller that went on at once would keep the
        interpreter from it for half a millisecond.
        """
        flight = Flight(compute, landed)
        self._flights.put(flight)
        flight.wait_for_begin()
        return flight

    def close(self) -> None:
        """End the thread after the step it runs, and wait for that."""
        self._flights.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (flight := self._flights.get()) is not None:
            flight.run(self._clock)
