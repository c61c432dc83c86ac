"""The other ranks as rank 0 sees them: processes that it starts, tells what to do, and watches."""

import contextlib
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from sloserve.errors import BadInput, Failed, SloserveError
from sloserve.model.batch import Layout
from sloserve.model.parallel.orders import (
    Answer,
    Done,
    Join,
    Leave,
    NotDone,
    Order,
    Release,
    Step,
    as_bytes,
)
from sloserve.model.parallel.seat import Seat
from sloserve.model.parallel.wire import packed

_log = logging.getLogger(__name__)

WORKER = "sloserve.model.parallel.worker"
GRACE_S = 5.0
"""What a rank that is told to leave gets before it is killed."""
BLAME_S = 2.0
"""How long a failed step waits to hear that another rank's death was the cause."""


@dataclass(frozen=True, slots=True)
class _Other:
    """One process, its end of the conversation, and the pipe by which it learns of our death."""

    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection


class Ranks:
    """
    Ranks 1 .. size - 1 of a replica, each a process; this one is rank 0.

    They end with this process, however it ends: each watches a pipe whose other end is held here
    alone. When one of them ends by itself, `lost` says so, and no further step can be taken:
    every step needs all ranks. One thread at a time may tell them anything.
    """

    def __init__(self, size: int, *, device: torch.device, threads: int) -> None:
        """Starts the processes. `threads`: CPU threads of each."""
        self.seat = Seat(0, size)
        self.lost: str | None = None
        """Why no step can be taken any more."""
        self.num_steps = 0
        self._device = device
        self._leaving = False
        self._told_lost: list[Callable[[str], None]] = []
        self._lock = threading.Lock()
        self._someone_ended = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="sloserve-ranks-"))
        self._others: list[_Other] = []
        try:
            for rank in range(1, size):
                self._others.append(self._start(rank, threads))
        except BaseException:
            self.close()
            raise
        for other in self._others:
            name = f"sloserve-rank-{other.rank}"
            threading.Thread(target=self._watch, args=(other,), name=name, daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Process ids of ranks 1, 2, ..."""
        return [other.process.pid for other in self._others]

    # --- a model ------------------------------------------------------------------------------

    def join(self, *, timeout_s: float) -> None:
        """Wait until all processes are up, and meet them. Raises Failed."""
        self._await_answers(timeout_s)
        store = self._folder / "store"
        self.tell(Join(str(store), self._device.type, timeout_s))
        self.seat.join(
            store,
            device=self._device,
            timeout_s=timeout_s,
            give_up=lambda: self.lost is not None,
        )
        self._await_answers(timeout_s)

    def tell(self, order: Order) -> None:
        """Send an order to every other rank. Raises Failed when one is gone."""
        if self.lost is not None:
            raise Failed(self.lost)
        body = as_bytes(order)
        try:
            for other in self._others:
                other.connection.send_bytes(body)
        except OSError as error:
            raise Failed(self._blame(error)) from error

    def await_loaded(self, *, timeout_s: float) -> None:
        """Wait until every rank has its part of the model. Raises what went wrong there."""
        self._await_answers(timeout_s)

    def explain(self, error: BaseException) -> SloserveError:
        """
        What really went wrong when working with the other ranks raised `error` here: one that
        fails tells why before it ends, and this rank only sees that it is gone.
        """
        if not isinstance(error, BadInput):
            self._someone_ended.wait(BLAME_S)
        for other in self._others:
            with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
                if other.connection.poll(0):
                    answer: Answer = other.connection.recv()
                    if isinstance(answer, NotDone):
                        return _error_of(answer, other.rank)
        if self.lost is not None:
            return Failed(self.lost)
        if isinstance(error, SloserveError):
            return error
        return Failed(f"loading over {self.seat.size} ranks failed: {error}")

    # --- steps --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, layout: Layout) -> Iterator[None]:
        """
        Within this, compute the step of `layout`: the other ranks do the same meanwhile.

        An exception within leaves the ranks at different places of the computation, where a later
        step would add up what does not belong together: nothing is computed after it. Raises
        Failed then.
        """
        self.tell(Step(packed(layout)))
        self.num_steps += 1
        try:
            yield
        except Exception as error:
            raise Failed(self._blame(error)) from error

    def on_lost(self, call: Callable[[str], None]) -> None:
        """`call` gets the reason when no step can be taken any more, from any thread or at once."""
        with self._lock:
            if self.lost is None:
                self._told_lost.append(call)
                return
        call(self.lost)

    # --- the end ------------------------------------------------------------------------------

    def release(self) -> None:
        """The other ranks drop their parts of the model."""
        if self.lost is None:
            self.tell(Release())

    def close(self, *, grace_s: float = GRACE_S) -> None:
        """End the other ranks: within `grace_s`, at once when one is lost."""
        if self._leaving:
            return
        self._leaving = True
        for other in self._others:
            with contextlib.suppress(OSError):
                other.connection.send_bytes(as_bytes(Leave()))
        until_s = time.monotonic() + (grace_s if self.lost is None else 0.0)
        for other in self._others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.process.wait(max(0.0, until_s - time.monotonic()))
        self._end_all()
        self.seat.leave()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- parts --------------------------------------------------------------------------------

    def _start(self, rank: int, threads: int) -> _Other:
        ours, theirs = Pipe()
        words = [str(theirs.fileno()), str(rank), str(self.seat.size)]
        own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER, *words],
                stdin=subprocess.PIPE,  # nothing is written: its end tells them that we are gone
                pass_fds=[theirs.fileno()],
                env={**os.environ, **own},
                start_new_session=True,  # Ctrl-C is for rank 0
            )
        return _Other(rank, process, ours)

    def _await_answers(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        for other in self._others:
            try:
                if not other.connection.poll(max(0.0, until_s - time.monotonic())):
                    text = f"rank {other.rank} did not get ready within {timeout_s:g} s"
                    raise Failed(f"{text}; its last words are in this process's log")
                answer: Answer = other.connection.recv()
            except (EOFError, OSError) as error:
                raise Failed(self._blame(error)) from error
            if isinstance(answer, NotDone):
                raise _error_of(answer, other.rank)
            assert isinstance(answer, Done)

    def _watch(self, other: _Other) -> None:
        code = other.process.wait()
        if not self._leaving:
            how = f"ended with code {code}"
            if code < 0:
                how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
            self._lose(
                f"rank {other.rank} of {self.seat.size} (process {other.process.pid}) {how}; a "
                "step needs all ranks, so this replica can't go on"
            )
        self._someone_ended.set()

    def _blame(self, error: BaseException) -> str:
        """The reason for a failure in the middle of things; nothing goes on after it."""
        self._someone_ended.wait(BLAME_S)
        self._lose(
            f"rank 0 of {self.seat.size} left a step unfinished ({type(error).__name__}: {error}); "
            "the ranks are out of step, so this replica can't go on"
        )
        assert self.lost is not None
        return self.lost

    def _lose(self, why: str) -> None:
        with self._lock:
            if self.lost is not None:
                return
            self.lost = why
            told, self._told_lost = self._told_lost, []
        if not self._leaving:
            _log.error("a rank is lost: %s", why)
        self._end_all()
        for call in told:
            call(why)

    def _end_all(self) -> None:
        for other in self._others:
            with contextlib.suppress(ProcessLookupError):
                other.process.kill()
            if other.process.stdin is not None:
                with contextlib.suppress(OSError):
                    other.process.stdin.close()


def _error_of(answer: NotDone, rank: int) -> SloserveError:
    if answer.bad_input:
        error = BadInput(answer.message)
        error.field = answer.field
        return error
    return Failed(f"rank {rank}: {answer.message}")
