"""A gateway that was told to stop."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench.ports import free_port

from sloserve.errors import Reason

Make = Any
"""A builder from conftest."""
MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {{name: assistant}}
spec:
  model: {{source: "builtin://sim"}}
  sloClasses: [{{name: chat, ttft: {{target: 5s}}, tpot: 100ms}}]
  drain: {{timeout: {drain}}}
"""
BODY = {"model": "assistant", "prompt": "Hello", "max_tokens": 3}


def test_an_answer_that_outlives_the_drain_ends_with_an_explicit_error(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].default = act(tokens=1000, gap_s=0.01)
            asked = asyncio.create_task(world.ask(stream=True))
            await world.until(lambda: any(e.ticket.sent for e in world.core.open))
            for exchange in list(world.core.open):
                exchange.end(Reason.DRAINING)
                exchange.end(Reason.CLIENT_GONE)  # the first word counts
            answer = await asked
            assert answer.status == 200
            last = answer.events[-1]
            assert last["choices"][0]["finish_reason"] == "error"
            assert last["error"]["code"] == "Draining"
            assert "goes away" in last["error"]["message"]
            labels = ("chat", "admitted", "failed", "Draining")
            assert world.count("sloserve_requests_total", *labels) == 1
            await world.until(lambda: world.replicas[0].asked[0].cancelled)

    asyncio.run(story())


def test_a_request_that_is_still_held_at_the_end_of_the_drain_is_refused(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].says(state="loading")
            await world.until(lambda: world.hears("loading"))
            asked = asyncio.create_task(world.ask(stream=True))
            await world.until(lambda: len(world.core.room) == 1)
            for exchange in list(world.core.open):
                exchange.end(Reason.DRAINING)
            answer = await asked
            assert answer.status == 503
            assert answer.headers["x-slo-reason"] == "Draining"
            assert answer.json["error"]["code"] == "Draining"
            assert "retry-after" in answer.headers

    asyncio.run(story())


@dataclass
class Process:
    """A real gateway, without replicas."""

    url: str
    internal_url: str
    process: subprocess.Popen[bytes]

    def is_draining(self) -> bool:
        """Whether it says so."""
        return httpx.get(f"{self.internal_url}/ready").status_code == 503


def wait_for(holds: Callable[[], bool]) -> None:
    """Until it holds; an error after a minute."""
    end_s = time.monotonic() + 60
    while True:
        try:
            if holds():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """`start(drain)`: a gateway whose answers get so long to finish; killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def make(drain: str) -> Process:
        config = tmp_path / "spec.yaml"
        config.write_text(MANIFEST.format(drain=drain))
        listen, internal = (f"127.0.0.1:{free_port()}" for _ in range(2))
        words = ["gateway", "--config", str(config), "--listen", listen, "--internal", internal]
        command = [sys.executable, "-P", "-m", "sloserve.cli", *words]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, "--replicas", "127.0.0.1:1"], env=env)
        started.append(process)
        made = Process(f"http://{listen}", f"http://{internal}", process)
        wait_for(lambda: httpx.get(f"{made.url}/ready").status_code == 200)
        return made

    yield make
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_kept_alive_connection_brings_one_more_request_and_hears_that_it_closes(
    start: Callable[[str], Process],
) -> None:
    gateway = start("60s")
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        assert client.get("/v1/models").headers.get("connection") != "close"
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(gateway.is_draining)
        with pytest.raises(httpx.ConnectError):  # new connections are refused
            httpx.get(f"{gateway.url}/v1/models")
        answer = client.get("/v1/models")
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert gateway.process.wait(30) == 0  # nobody is left: it need not wait any longer


@pytest.mark.slow
def test_who_waits_beyond_the_drain_is_told(start: Callable[[str], Process]) -> None:
    gateway = start("1s")
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{gateway.url}/v1/completions", json=BODY, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: httpx.get(f"{gateway.internal_url}/report").json()["pending"] == 1)
    gateway.process.send_signal(signal.SIGTERM)
    asking.join(60)
    assert [answer.status_code for answer in answers] == [503]
    assert answers[0].json()["error"]["code"] == "Draining"
    assert gateway.process.wait(60) == 0
