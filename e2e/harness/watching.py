"""Every state that an object went through, as the API server told it."""

import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.waiting import until


class Watch:
    """`kubectl get KIND NAME --watch` while the block runs; `seen` afterwards."""

    def __init__(self, kubectl: Kubectl, kind: str, name: str) -> None:
        words = ["--namespace", kubectl.namespace, "get", kind, name, "--watch", "-o", "json"]
        self._command = [kubectl.program, *words]
        self._file: IO[bytes] = tempfile.NamedTemporaryFile()  # noqa: SIM115  closed on leaving
        self._process: subprocess.Popen[bytes] | None = None
        self.seen: list[Obj] = []

    def __enter__(self) -> "Watch":
        self._process = subprocess.Popen(self._command, stdout=self._file)
        until(self._read, f"{' '.join(self._command)} tells something", timeout_s=20)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        ended = self._process.poll()
        self._process.kill()
        self._process.wait()
        self.seen = self._read()
        self._file.close()
        assert error is not None or ended is None, f"the watch ended by itself with {ended}"

    def _read(self) -> list[Obj]:
        """The documents that are whole, one after the other in the file."""
        text = Path(self._file.name).read_text(encoding="utf-8")
        decoder, at = json.JSONDecoder(), 0
        found: list[Obj] = []
        while True:
            at += len(text[at:]) - len(text[at:].lstrip())
            try:
                document, at = decoder.raw_decode(text, at)
            except ValueError:  # the end, or the beginning of the next
                return found
            found.append(document)
