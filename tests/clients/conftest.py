"""A real replica, a real gateway before it, and the clients of others as they ship them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sloserve.model.sources import resolve_source

ROOT = Path(__file__).parents[2]
START_S = 180.0
CLIENT_S = 600.0

MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {name: assistant}
spec:
  model: {source: "builtin://tiny", servedName: assistant, maxModelLen: 512}
  engine: {device: cpu, dtype: float32, maxBatchTokens: 96, kvCache: {size: 64Mi}}
  sloClasses:
    - {name: chat, ttft: {target: 60s}, tpot: 10s}
"""
"""Prompts longer than 96 tokens are computed in pieces."""


@dataclass(frozen=True)
class Service:
    """Where it is reached, and its model on disk."""

    replica_url: str
    gateway_url: str
    model_path: Path

    def url(self, through: str) -> str:
        """Of the replica itself, or of the gateway."""
        return self.gateway_url if through == "gateway" else self.replica_url


@dataclass(frozen=True)
class Client:
    """A command of another project."""

    binary: Path

    def run(self, *words: str, folder: Path) -> str:
        """What it prints, run in `folder`; an error that shows it when it fails."""
        env = {
            **os.environ,
            "HF_HOME": str(folder / "hf"),
            "PYTHONPATH": "",
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(
            [str(self.binary), *words],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CLIENT_S,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout


def _client(name: str) -> Client:
    """The client of that name; without it the test is skipped, before a service is started."""
    binary = ROOT / ".venv-clients" / "bin" / name
    if not binary.exists():
        pytest.skip(f"{name} is not installed: make clients CLIENTS={name}")
    return Client(binary)


@pytest.fixture(scope="session")
def lm_eval() -> Client:
    """To be named before `service`, as all of these."""
    return _client("lm_eval")


@pytest.fixture(scope="session")
def guidellm() -> Client:
    """A load generator."""
    return _client("guidellm")


@pytest.fixture(scope="session")
def aiperf() -> Client:
    """A load generator."""
    return _client("aiperf")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Ready; ended with the tests."""
    folder = tmp_path_factory.mktemp("service")
    config = folder / "service.yaml"
    config.write_text(MANIFEST)
    with ExitStack() as stack:

        def start(name: str, *words: str) -> Callable[[str], str]:
            """Start a process; finds what it says by a pattern with one group."""
            path = folder / f"{name}.log"
            output = stack.enter_context(path.open("wb"))
            command = [sys.executable, "-P", "-m", "sloserve.cli", name, "--config", str(config)]
            process = subprocess.Popen([*command, *words], stdout=output, stderr=output)
            stack.callback(process.wait)
            stack.callback(process.kill)
            end_s = time.monotonic() + START_S

            def says(pattern: str) -> str:
                found = None
                while found is None:
                    said = path.read_text()
                    assert process.poll() is None, said
                    assert time.monotonic() < end_s, said
                    time.sleep(0.05)
                    found = re.search(pattern, path.read_text())
                return found[1]

            return says

        replica = start("replica", "--listen", "127.0.0.1:0", "--profile", "tiny-cpu")
        replica_url = replica(r"(http://127\.0\.0\.1:\d+)\n")
        replica(r"INFO +sloserve\.frontend\.main: (ready) ")
        words = ("--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0")
        address = replica_url.removeprefix("http://")
        gateway = start("gateway", *words, "--replicas", address)
        gateway_url = gateway(r" url=(http://127\.0\.0\.1:\d+) ")
        gateway(r"(replica is ready) ")
        yield Service(replica_url, gateway_url, resolve_source("builtin://tiny"))
