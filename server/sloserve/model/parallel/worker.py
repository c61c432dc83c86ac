"""A process that is rank 1 or above: it computes what rank 0 does, with its part of the model."""

import contextlib
import logging
import os
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from sloserve import logs
from sloserve.errors import BadInput, SloserveError
from sloserve.model.parallel.orders import (
    Done,
    Join,
    Leave,
    Load,
    NotDone,
    Release,
    Step,
    from_bytes,
)

if TYPE_CHECKING:
    from sloserve.model.parallel.seat import Seat
    from sloserve.model.runner import TorchRunner

_log = logging.getLogger(__name__)


def main(words: list[str]) -> int:
    """`words`: the descriptor of the connection to rank 0, this rank, the number of ranks."""
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    descriptor, rank, size = map(int, words)
    connection = Connection(descriptor)
    # rank 0 tells what there is to tell; here only what it can't know
    logs.set_up(level="warning", form=os.environ.get(logs.FORMAT_VARIABLE, "human"))
    try:
        from sloserve.model.parallel.seat import Seat

        _Worker(Seat(rank, size), connection).run()
    except (EOFError, ConnectionResetError, BrokenPipeError):
        return 1  # rank 0 is gone
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send(_not_done(error))
        if not isinstance(error, BadInput):
            _log.exception("rank %d ends", rank)
        return 1
    return 0


class _Worker:
    """Carries out the orders of rank 0, one after the other."""

    def __init__(self, seat: "Seat", connection: Connection) -> None:
        self._seat = seat
        self._connection = connection
        self._runner: TorchRunner | None = None

    def run(self) -> None:
        """Until it is told to leave. Raises what goes wrong, and EOFError when rank 0 is gone."""
        import torch

        from sloserve.model import load  # takes seconds: done when rank 0 hears from us

        self._connection.send(Done())
        while True:
            match from_bytes(self._connection.recv_bytes()):
                case Step(body):
                    self._step(body)
                case Join() as order:
                    device = torch.device(order.device)
                    self._seat.join(Path(order.store), device=device, timeout_s=order.timeout_s)
                    self._connection.send(Done())
                case Load() as order:
                    self._runner = load.load_runner(
                        order.path, model=order.model, engine=order.engine, seat=self._seat
                    )
                    self._connection.send(Done())
                case Release() if self._runner is not None:
                    self._runner.close()
                    self._runner = None
                case Leave():
                    return

    def _step(self, body: bytes) -> None:
        import torch

        from sloserve.model.batch import place
        from sloserve.model.parallel.wire import unpacked
        from sloserve.model.runner import forward

        assert self._runner is not None, "no model is loaded"
        cache = self._runner.cache
        with torch.inference_mode():
            forward(self._runner.model, place(unpacked(body), device=cache.device), cache)


def _not_done(error: Exception) -> NotDone:
    if isinstance(error, BadInput):
        return NotDone(error.message, bad_input=True, field=error.field)
    text = error.message if isinstance(error, SloserveError) else f"{type(error).__name__}: {error}"
    return NotDone(text, bad_input=False)


def _end_with_parent() -> None:
    """Whatever this process waits for: when rank 0's process is gone, nobody will ever come."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    os._exit(1)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # nothing here is worth a second of taking libraries apart
