"""The thread that turns the engine, and the queue into it."""

import logging
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sloserve.engine.events import Generate
from sloserve.engine.loop import Engine
from sloserve.engine.reporter import Reporter
from sloserve.errors import Reason
from sloserve.slo import SloClass

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long another thread may keep the interpreter while the loop wants it; Python's own 5 ms is
as long as a whole step of a small model."""
RETRY_S = 0.002
"""With work that can't run yet (deferred), or an old report, an idle loop looks again after so
long."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request."""

    key: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Reclass:
    """Report on these classes from now on."""

    classes: tuple[SloClass, ...]
    generation: int


@dataclass(frozen=True, slots=True)
class WayOut:
    """What lies between emission and the client, in seconds."""

    way_out_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the loop, at the end of the step that runs."""


@dataclass(frozen=True, slots=True)
class Landed:
    """The step that ran beside the loop has ended."""


Command = Generate | Cancel | Reclass | WayOut | Stop | Landed


class EngineThread:
    """
    Runs an engine until told to stop. `put` may be called from any thread. What is put while a
    step runs beside the loop (`Engine.overlap`) is carried out, and planned for, at once.

    An exception out of the engine's own code ends all requests with Broken, and the loop goes
    on; one out of that, too, ends the thread (`alive` turns False).
    """

    def __init__(self, engine: Engine, reporter: Reporter, *, on_end: Callable[[], None]) -> None:
        """`on_end` is called in the thread, as its last deed."""
        self.engine = engine
        self.reporter = reporter
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name="sloserve-engine", daemon=True)
        self._stopped = False
        self._ended = False

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive() and not self._ended

    def start(self) -> None:
        """Start the thread. Lowers the interpreter's switch interval for the whole process."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
        self.reporter.start(self.engine.clock.now_s())
        self._thread.start()

    def put(self, command: Command) -> None:
        """Hand a command to the loop; it is read before the next step is begun."""
        self._inbox.put(command)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end; False when it did not within `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._turn_until_stopped()
        except BaseException:
            log.critical("the engine thread ends", exc_info=True)
        finally:
            self._ended = True
            self.reporter.stop()
            self._on_end()

    def _turn_until_stopped(self) -> None:
        busy = False
        while True:
            self._read(wait=not busy and not self._stopped)
            if self._stopped:
                break
            try:
                busy = self._turn()
            except Exception as error:
                self.engine.break_all(error)
                busy = False
        self.engine.close()

    def _turn(self) -> bool:
        """One step; while it runs beside us, whatever comes is taken in and planned for."""
        engine = self.engine
        if not engine.begin(landed=self._landed):
            return False
        while engine.in_flight:
            engine.foresee()
            self._carry_out(self._inbox.get())
            self._carry_out_the_rest()
        engine.finish()
        return True

    def _landed(self) -> None:
        self._inbox.put(Landed())

    def _read(self, *, wait: bool) -> None:
        """Carry out every command there is; with `wait`, stay until one comes."""
        if wait:
            self.reporter.offer(self.engine.clock.now_s(), idle=True)
            soon = self.engine.has_work or not self.reporter.fresh
            try:
                self._carry_out(self._inbox.get(timeout=RETRY_S if soon else None))
            except queue.Empty:
                return
        self._carry_out_the_rest()

    def _carry_out_the_rest(self) -> None:
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Generate():
                self.engine.add(command)
            case Cancel():
                self.engine.cancel(command.key, reason=command.reason)
            case Reclass():
                self.engine.set_classes(command.classes)
                self.reporter.set_generation(command.generation)
            case WayOut():
                self.engine.scheduler.way_out_s = command.way_out_s
            case Stop():
                self._stopped = True
            case Landed():
                pass  # it has woken the loop
