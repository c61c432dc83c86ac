"""A replica of two processes: however one of them ends, both do, and clients are told."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PATIENCE_S = 120.0
MANIFEST = """\
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {name: assistant}
spec:
  model: {source: "builtin://tiny", servedName: tiny, maxModelLen: 8192}
  engine: {tensorParallelSize: 2, threads: 2, dtype: float32, kvCache: {size: 128Mi}}
  drain: {timeout: 100s}
  sloClasses:
    - {name: chat, ttft: {target: 60s}, tpot: 10s}
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value; waits for long, as other work may keep this machine busy."""
    end_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


def state(pid: int) -> str:
    """The process's state as /proc has it, in one letter; Z once it has ended or is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def ranks_of(pid: int) -> list[int]:
    """The processes that were started by this one to compute with it."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text("utf-8").split()):
            if b"parallel.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


class Replica:
    """`sloserve replica` over two ranks, ready, and the process that is its rank 1."""

    def __init__(self, folder: Path) -> None:
        config = folder / "service.yaml"
        config.write_text(MANIFEST)
        self._log = folder / "log"
        words = ["--config", str(config), "--listen", "127.0.0.1:0", "--profile", "h200"]
        with self._log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sloserve.cli", "replica", *words],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        until(self._is_ready, "the replica")
        (self.rank_1,) = ranks_of(self.process.pid)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        return httpx.get(f"{self.url}/ready", timeout=PATIENCE_S).status_code == 200

    def stream(self, num_tokens: int) -> Iterator[str]:
        """The lines of an answer of so many tokens; the first has come when this returns."""
        body = {"prompt": "x", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}

        def lines() -> Iterator[str]:
            with httpx.stream(
                "POST", f"{self.url}/v1/completions", json=body, timeout=PATIENCE_S
            ) as answer:
                assert answer.status_code == 200
                yield from (line for line in answer.iter_lines() if line)

        lines_ = lines()
        assert "text" in next(lines_)
        return lines_

    def said(self) -> str:
        """What it has written to stderr until now."""
        return self._log.read_text("utf-8")

    def ended(self) -> int:
        """Its exit code, once it has ended and rank 1 with it."""
        self.process.communicate(timeout=PATIENCE_S)
        until(lambda: state(self.rank_1) == "Z", "the end of rank 1")
        return self.process.returncode


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(tmp_path)
    try:
        replica.wait_until_ready()
        assert state(replica.rank_1) != "Z"
        yield replica
    finally:
        if replica.process.poll() is None:
            replica.process.kill()
            replica.process.communicate()


def test_a_killed_rank_ends_the_stream_with_its_name_and_the_replica_with_a_code(
    replica: Replica,
) -> None:
    lines = replica.stream(8000)
    subprocess.run(["kill", "-KILL", str(replica.rank_1)], check=True)
    *_, last, done = lines
    assert done == "data: [DONE]"
    message = json.loads(last.removeprefix("data: "))["error"]["message"]
    assert f"rank 1 of 2 (process {replica.rank_1}) was killed by signal 9 (SIGKILL)" in message
    assert replica.ended() == 1
    assert f"process {replica.rank_1}) was killed" in replica.said()


def test_a_killed_replica_leaves_no_rank_behind(replica: Replica) -> None:
    lines = replica.stream(8000)  # both compute, and wait for each other
    replica.process.kill()
    with pytest.raises(httpx.TransportError):
        list(lines)
    assert replica.ended() == -signal.SIGKILL


def test_a_replica_that_is_told_to_stop_answers_to_the_end_and_leaves_nobody_behind(
    replica: Replica,
) -> None:
    lines = replica.stream(300)
    replica.process.send_signal(signal.SIGTERM)
    *others, last = lines
    assert last == "data: [DONE]"
    assert not any("error" in json.loads(line.removeprefix("data: ")) for line in others)
    assert replica.ended() == 0
