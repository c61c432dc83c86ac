"""A manifest of a simulated service, and `sloserve` as a process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.ports import free_port

PATIENCE_S = 60.0

Manifest = dict[str, Any]


@pytest.fixture
def manifest() -> Manifest:
    """Two replicas of the simulated model, one class."""
    return {
        "apiVersion": "sloserve.io/v1alpha1",
        "kind": "SLOService",
        "metadata": {"name": "demo"},
        "spec": {
            "model": {"source": "builtin://sim?profile=h200"},
            "sloClasses": [{"name": "chat", "ttft": {"target": "5s"}, "tpot": "1s"}],
            "replicas": 2,
            "drain": {"timeout": "5s"},
        },
    }


def until(check: Callable[[], Any], what: str) -> Any:
    """The first true value of `check`; gives up with a message after a long while."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        value = check()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain: {what}")


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class World:
    """One `sloserve up` and what a person does with it."""

    def __init__(self, folder: Path, manifest: Manifest, *words: str) -> None:
        self.folder = folder
        self.file = folder / "service.yaml"
        self.state = folder / "state"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.write(manifest)
        self._out = (folder / "out.txt").open("wb")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sloserve.cli",
                "up",
                "-f",
                str(self.file),
                "--port",
                str(self.port),
                "--state",
                str(self.state),
                *words,
            ],
            stdout=self._out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def write(self, manifest: Manifest) -> None:
        """Save the manifest, as an editor does."""
        partial = self.file.with_suffix(".new")
        partial.write_text(yaml.safe_dump(manifest))
        partial.replace(self.file)

    def told(self) -> str:
        """Everything that was printed."""
        return (self.folder / "out.txt").read_text()

    def get(self, path: str) -> Any:
        """The JSON at a path; None while nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def ready(self, num_replicas: int) -> Any:
        """Wait until exactly so many replicas are there, all ready; the overview."""

        def check() -> Any:
            assert self.process.poll() is None, self.told()
            overview = self.get("/v1/slo")
            if overview is None:
                return None
            states = [replica["state"] for replica in overview["replicas"]]
            return overview if states == ["ready"] * num_replicas else None

        return until(check, f"{num_replicas} replicas ready\n{self.told()}")

    def ask(self) -> str:
        """The text of one answer."""
        body = {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    def stream(self, num_tokens: int) -> Any:
        """An answer of so many tokens, as it comes: lines of bytes."""
        body = {"model": "demo", "prompt": "hi", "stream": True, "max_tokens": num_tokens,
                "ignore_eos": True}  # fmt: skip
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=60)

    def children(self) -> dict[str, int]:
        """Process ids by name: `gateway`, `replica-0`, ..."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().decode().split("\0")
                if str(self.state / "service.yaml") in words:
                    name = words[words.index("--name") + 1] if "--name" in words else "gateway"
                    found[name] = int(path.parent.name)
        return found

    def signal(self, signum: int) -> None:
        """Send a signal to `sloserve up` alone."""
        os.kill(self.process.pid, signum)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()
        for pid in self.children().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._out.close()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Starts `sloserve up` with a manifest; everything is stopped after the test."""
    worlds: list[World] = []

    def start(manifest: Manifest, *words: str) -> World:
        folder = tmp_path / f"world-{len(worlds)}"
        folder.mkdir()
        worlds.append(World(folder, manifest, *words))
        return worlds[-1]

    yield start
    for world in worlds:
        world.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any], str], Any]:
    """`eventually(check, what)`: wait for a true value."""
    return until


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    """Whether a process runs."""
    return alive
