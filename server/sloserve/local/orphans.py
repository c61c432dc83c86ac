"""A child never outlives its parent, not even after `kill -9` of the parent."""

import contextlib
import ctypes
import os
import signal
import sys
import threading

PARENT = "SLOSERVE_PARENT"
"""Environment variable of a child: the process id of the parent it dies with."""

_PR_SET_PDEATHSIG = 1


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of a child of this process; `threads` for its numeric libraries."""
    own = {PARENT: str(os.getpid())}
    if threads is not None:
        own |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **own}


def die_with_parent() -> None:
    """
    Called by a child on start; does nothing in a process that was not started by `sloserve up`.

    On Linux the kernel kills the child when its parent dies. Everywhere, a thread watches the
    pipe on standard input, whose other end only the parent holds: its end is the parent's end.
    """
    parent, _, child = os.environ.pop(PARENT, "").partition(":")
    if not parent or child not in ("", str(os.getpid())):
        return
    # for the same process after an exec; its own children find another id, and are left alone
    os.environ[PARENT] = f"{parent}:{os.getpid()}"
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)
    threading.Thread(target=_watch_pipe, name="parent-watch", daemon=True).start()


def _watch_pipe() -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    os._exit(1)
