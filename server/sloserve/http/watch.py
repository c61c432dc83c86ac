"""
Files that may change while a server runs: polled, reloaded, and never replaced by something bad.

Polling sees what a ConfigMap mount does (a symlink is swapped, the old inode stays) as well as
editors that write a new file and rename it. One `stat` a second costs nothing.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

from sloserve.errors import SloserveError

log = logging.getLogger(__name__)

T = TypeVar("T")
PERIOD_S = 1.0


class Watched(Generic[T]):
    """
    The value read from one file, kept up to date by `poll`.

    `load` reads the file and raises SloserveError when its content is bad: then the value in
    force stays, and the log says why, once per change.
    """

    def __init__(self, path: str | Path, load: Callable[[Path], T]) -> None:
        self.path = Path(path)
        self._load = load
        self._seen = self._mark()
        self.value = load(self.path)
        """The value in force."""

    def poll(self) -> bool:
        """Look once; True when there is a new value in force."""
        mark = self._mark()
        if mark == self._seen:
            return False
        if mark is None:
            log.warning(
                "file is gone, the last content stays in force", extra={"path": str(self.path)}
            )
            self._seen = mark
            return False
        self._seen = mark
        try:
            value = self._load(self.path)
        except SloserveError as error:
            log.error(
                "bad content, the last good one stays in force",
                extra={"path": str(self.path), "error": error.message},
            )
            return False
        if value == self.value:
            return False
        self.value = value
        return True

    async def follow(
        self, changed: Callable[[T], Awaitable[None] | None], *, period_s: float = PERIOD_S
    ) -> None:
        """Poll until cancelled; `changed` gets every new value. Its failures are logged."""
        while True:
            await asyncio.sleep(period_s)
            if not self.poll():
                continue
            try:
                done = changed(self.value)
                if done is not None:
                    await done
            except SloserveError as error:
                log.error(
                    "can't apply a file", extra={"path": str(self.path), "error": error.message}
                )

    def _mark(self) -> tuple[int, int, int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
