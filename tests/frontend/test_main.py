"""`sloserve replica` as a process: start, stop, edits to its manifest, bad starts."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sloserve.cli import main

MANIFEST = """\
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {name: assistant, generation: 7}
spec:
  model: {source: "builtin://sim?profile=h200", servedName: sim}
  drain: {timeout: 30s}
  sloClasses:
    - {name: chat, ttft: {target: 2s}, tpot: 1s}
"""
GOLD = "    - {name: gold, ttft: {target: 1s}, tpot: 500ms}\n"

Start = Callable[..., "Process"]


class Process:
    """A replica in a process of its own."""

    def __init__(self, log: Path, *words: str) -> None:
        self._log = log
        with log.open("w") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "sloserve.cli", "replica", *words],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.url = ""

    def wait_until_ready(self) -> None:
        assert self.popen.stdout is not None
        self.url = self.popen.stdout.readline().split()[-1]
        self.wait_for(lambda: httpx.get(f"{self.url}/ready").status_code == 200)

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert self.popen.poll() is None, self.said()
            assert time.monotonic() < end_s, "it never happened"
            time.sleep(0.02)

    def said(self) -> str:
        """What it has written to stderr until now."""
        return self._log.read_text()

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        self.popen.communicate(timeout=30)
        return self.popen.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def one(*words: str) -> Process:
        started.append(Process(tmp_path / f"replica-{len(started)}.log", *words))
        return started[-1]

    yield one
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "service.yaml"
    path.write_text(MANIFEST)
    return path


def ask(url: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, headers=headers)


def test_a_replica_serves_follows_its_manifest_and_drains(start: Start, config: Path) -> None:
    process = start("--config", str(config), "--listen", "127.0.0.1:0", "--name", "r1")
    process.wait_until_ready()
    assert ask(process.url).headers["x-slo-replica"] == "r1"
    assert ask(process.url, **{"x-slo-class": "gold"}).status_code == 400

    config.write_text(MANIFEST.replace("generation: 7", "generation: 8") + GOLD)
    process.wait_for(lambda: ask(process.url, **{"x-slo-class": "gold"}).status_code == 200)
    text = httpx.get(f"{process.url}/metrics?name[]=sloserve_config_generation").text
    assert "sloserve_config_generation 8.0" in text

    config.write_text("spec: nonsense")
    process.wait_for(lambda: "bad content, the last good one stays in force" in process.said())
    assert ask(process.url, **{"x-slo-class": "gold"}).status_code == 200

    body = {"prompt": "x", "max_tokens": 150, "stream": True}
    with httpx.stream("POST", f"{process.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.popen.send_signal(signal.SIGTERM)
        process.wait_for(lambda: ask(process.url).status_code == 503)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.ended() == 0


def test_a_model_alone_is_served_with_a_default_class(start: Start) -> None:
    process = start("--model", "builtin://sim", "--listen", "127.0.0.1:0", "--policy", "fcfs")
    process.wait_until_ready()
    assert ask(process.url).headers["x-slo-class"] == "default"
    process.popen.send_signal(signal.SIGINT)
    assert process.ended() == 130


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--listen", "127.0.0.1:0"], 2, "give --config FILE"),
        (["--model", "builtin://sim", "--listen", "nowhere"], 2, "allowed: HOST:PORT"),
        (["--model", "builtin://sim", "--listen", "127.0.0.1:0", "--profile", "no"], 2, "profile"),
        (["--model", "builtin://big", "--listen", "127.0.0.1:0"], 2, "builtin://tiny"),
        (["--config", "/nonexistent.yaml"], 2, "can't read /nonexistent.yaml"),
    ],
)
def test_a_bad_start_is_one_clear_line_and_a_code(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replica", *words, "--log-level", "error"]) == code
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_taken_port_is_exit_code_1(unready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address = unready.url.removeprefix("http://")
    assert main(["replica", "--model", "builtin://sim", "--listen", address]) == 1
    assert f"can't listen on {address}" in capsys.readouterr().err
