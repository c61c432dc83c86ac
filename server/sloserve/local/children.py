"""One child process: started, watched, restarted with back-off, stopped."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sloserve.local.orphans import environment

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A child that ran this long counts as healthy again: its next pause is the first."""


class Phase(StrEnum):
    """Where a child stands."""

    RUNNING = "running"
    PAUSED = "restarting"  # it ended by itself; the next start waits
    STOPPING = "stopping"
    ENDED = "ended"


def pause_s(num_failures: int) -> float:
    """Seconds to wait before the start after `num_failures` (>= 1) ends in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(num_failures - 1, 30))


@dataclass(frozen=True, slots=True)
class Arguments:
    """The words after `sloserve`, and the sockets that the child inherits; closed here then."""

    words: list[str]
    sockets: Sequence[socket.socket] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """How a child is started: its arguments, its log file, its threads."""

    arguments: Callable[[], Arguments]
    """Asked at every start: a restarted replica takes another port."""
    log_path: Path
    threads: int | None = None
    program: tuple[str, ...] = (sys.executable, "-P", "-m", "sloserve.cli")


class Child:
    """
    A supervised process in a session of its own, so that Ctrl-C reaches only the parent.

    `ended` is called with the exit code each time the process ends by itself.
    """

    def __init__(self, name: str, launch: Launch, *, ended: Callable[[int], None]) -> None:
        self.name = name
        self.phase = Phase.RUNNING
        self.num_restarts = 0
        self._launch = launch
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._supervise(), name=f"child {name}")

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    def last_words(self) -> str:
        """The last line of the child's log that is not empty."""
        with contextlib.suppress(OSError):
            lines = self._launch.log_path.read_text(errors="replace").splitlines()
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def ask_to_stop(self) -> None:
        """SIGTERM: the child drains and ends; it is not started again."""
        self._stopping(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, at once."""
        self._stopping(signal.SIGKILL)

    async def wait(self, *, timeout_s: float | None = None) -> bool:
        """Wait until a child that was told to stop is gone; False when the time is up."""
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        return bool(done)

    def _stopping(self, signum: signal.Signals) -> None:
        if self.phase is Phase.PAUSED:
            self._task.cancel()
        if self.phase is not Phase.ENDED:
            self.phase = Phase.STOPPING
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signum)

    async def _supervise(self) -> None:
        num_failures = 0
        try:
            while True:
                start_s = time.monotonic()
                code = await self._run_once()
                if self.phase is Phase.STOPPING:
                    return
                steady = time.monotonic() - start_s > STEADY_S
                num_failures = 1 if steady else num_failures + 1
                self.phase = Phase.PAUSED
                log.info("child ended", extra={"child": self.name, "code": code})
                self._ended(code)
                await asyncio.sleep(pause_s(num_failures))
                self.phase = Phase.RUNNING
                self.num_restarts += 1
        finally:
            self.phase = Phase.ENDED

    async def _run_once(self) -> int:
        self._launch.log_path.parent.mkdir(parents=True, exist_ok=True)
        arguments = self._launch.arguments()
        with contextlib.ExitStack() as stack:
            for sock in arguments.sockets:
                stack.enter_context(sock)
            log_file = stack.enter_context(self._launch.log_path.open("ab"))
            self._process = await asyncio.create_subprocess_exec(
                *self._launch.program,
                *arguments.words,
                pass_fds=[sock.fileno() for sock in arguments.sockets],
                stdin=asyncio.subprocess.PIPE,  # its end tells the child that we are gone
                stdout=log_file,
                stderr=log_file,
                env=environment(self._launch.threads),
                start_new_session=True,
            )
        if self.phase is Phase.STOPPING:  # told so while it started
            self._process.terminate()
        try:
            return await self._process.wait()
        finally:
            self._process = None
