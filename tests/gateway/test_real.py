"""The real processes: `sloserve replica` with a simulated model, and `sloserve gateway`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from bench.ports import free_port
from openai.types import Completion

from sloserve.cli import main

MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {{name: assistant, generation: {generation}}}
spec:
  model: {{source: "builtin://sim?profile=h200"}}
  sloClasses:
    - {{name: chat, ttft: {{target: 5s}}, tpot: {tpot}}}
  replicas: 2
  drain: {{timeout: 30s}}
"""


def wait_for(holds: Callable[[], bool], *, at_most_s: float = 60.0) -> None:
    """Until it holds; an error after `at_most_s`."""
    end_s = time.monotonic() + at_most_s
    while True:
        try:
            if holds():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end_s
        time.sleep(0.05)


@dataclass
class Gateway:
    """One gateway."""

    url: str
    internal_url: str
    process: subprocess.Popen[bytes]

    def metric(self, line: str) -> float | None:
        """The value of one series of the gateway, by how its line begins."""
        text = httpx.get(f"{self.internal_url}/metrics").text
        found = [ln for ln in text.splitlines() if ln.startswith(line)]
        return float(found[0].rsplit(" ", 1)[1]) if found else None

    def num_ready(self) -> int:
        """Replicas that are ready."""
        seen = httpx.get(f"{self.url}/v1/slo").json()["replicas"]
        return sum(r["state"] == "ready" for r in seen)


@dataclass
class Chain:
    """Two replicas, and one gateway or two in front of both."""

    config: Path
    gateways: list[Gateway]
    replicas: dict[str, subprocess.Popen[bytes]]
    replica_urls: list[str]

    def num_running(self) -> float:
        """Requests that the replicas work on."""
        texts = [httpx.get(f"{url}/metrics").text for url in self.replica_urls]
        lines = [ln for text in texts for ln in text.splitlines()]
        return sum(
            float(ln.rsplit(" ", 1)[1])
            for ln in lines
            if ln.startswith("sloserve_running_requests")
        )


@contextmanager
def running(tmp_path: Path, *, num_gateways: int) -> Iterator[Chain]:
    """The processes, ready; killed at the end."""
    config = tmp_path / "spec.yaml"
    config.write_text(MANIFEST.format(generation=1, tpot="100ms"))
    ports = [free_port() for _ in range(2)]
    with ExitStack() as stack:

        def start(name: str, *words: str) -> subprocess.Popen[bytes]:
            output = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            command = [sys.executable, "-P", "-m", "sloserve.cli", *words]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        replicas = {
            f"r{port}": start(
                f"r{port}", "replica", "--config", str(config), "--name", f"r{port}",
                "--listen", f"127.0.0.1:{port}",
            )
            for port in ports
        }  # fmt: skip
        gateways = []
        for number in range(num_gateways):
            listen, internal = (f"127.0.0.1:{free_port()}" for _ in range(2))
            process = start(
                f"gateway{number}", "gateway", "--config", str(config), "--listen", listen,
                "--internal", internal,
                "--replicas", ",".join(f"127.0.0.1:{port}" for port in ports),
            )  # fmt: skip
            gateways.append(Gateway(f"http://{listen}", f"http://{internal}", process))
        for gateway in gateways:
            wait_for(lambda gateway=gateway: gateway.num_ready() == 2)  # type: ignore[misc]
        yield Chain(config, gateways, replicas, [f"http://127.0.0.1:{port}" for port in ports])


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with running(tmp_path, num_gateways=1) as it:
        yield it


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Chain]:
    with running(tmp_path, num_gateways=2) as it:
        yield it


@pytest.mark.slow
def test_promises_through_real_processes(chain: Chain) -> None:
    gateway = chain.gateways[0]
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    with client:
        # An answer of words; the counters say what the client saw.
        with client.completions.with_streaming_response.create(
            model="assistant", prompt="Once upon", max_tokens=20, stream=True
        ) as raw:
            assert raw.headers["x-slo-decision"] == "admitted"
            assert raw.headers["x-slo-ttft-ms"] == "5000"
            assert raw.headers["x-slo-replica"] in chain.replicas
            events = [line for line in raw.iter_lines() if line]
        assert len(events) >= 21
        assert events[-1] == "data: [DONE]"
        assert not any(line.startswith(":") for line in events)
        labels = '{model="assistant",service="assistant",slo_class="chat"}'
        wait_for(lambda: gateway.metric(f"sloserve_slo_requests_total{labels}") == 1)
        kept = '{model="assistant",promise="all",service="assistant",slo_class="chat"}'
        assert gateway.metric(f"sloserve_slo_attained_total{kept}") == 1

        # A class change applies live, without a restart.
        chain.config.write_text(MANIFEST.format(generation=2, tpot="90ms"))
        wait_for(lambda: gateway.metric("sloserve_config_generation") == 2)
        target = 'sloserve_slo_target_seconds{promise="tpot",service="assistant",slo_class="chat"}'
        assert gateway.metric(target) == 0.09

        # Another name for the model is the business of new replicas: these keep theirs.
        renamed = MANIFEST.format(generation=3, tpot="90ms")
        chain.config.write_text(renamed.replace("{source:", "{servedName: helper, source:"))
        wait_for(lambda: gateway.metric("sloserve_config_generation") == 3)
        done = client.completions.create(model="assistant", prompt="Still", max_tokens=3)
        assert done.model == "assistant"

        # A replica is killed in the middle of an answer: said so; the next one is served.
        with client.completions.with_streaming_response.create(
            model="assistant", prompt="On", max_tokens=2000, stream=True
        ) as raw:
            lines = raw.iter_lines()
            next(lines)
            chain.replicas[raw.headers["x-slo-replica"]].kill()
            last = [line for line in lines if line][-1]
        error = json.loads(last.removeprefix("data: "))
        assert error["error"]["code"] == "ReplicaLost"
        assert error["choices"][0]["finish_reason"] == "error"
        done = client.completions.create(model="assistant", prompt="Again", max_tokens=3)
        assert done.usage is not None
        assert done.usage.completion_tokens == 3

        # SIGTERM: the open stream finishes, new connections are refused, exit 0.
        with client.completions.with_streaming_response.create(
            model="assistant", prompt="Last", max_tokens=150, stream=True
        ) as raw:
            lines = raw.iter_lines()
            next(lines)
            gateway.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert gateway.process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{gateway.url}/health")


@pytest.mark.slow
def test_a_killed_gateway_takes_only_its_own_connections_with_it(pair: Chain) -> None:
    killed, other = pair.gateways
    with (
        openai.OpenAI(base_url=f"{killed.url}/v1", api_key="none", max_retries=0) as to_killed,
        openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", max_retries=0) as to_other,
        ExitStack() as stack,
    ):

        def begin(client: openai.OpenAI, *, max_tokens: int) -> openai.Stream[Completion]:
            stream = client.completions.create(
                model="assistant", prompt="On", max_tokens=max_tokens, stream=True
            )
            stack.callback(stream.close)
            next(stream)
            return stream

        lost = [begin(to_killed, max_tokens=20_000) for _ in range(3)]
        kept = [begin(to_other, max_tokens=100) for _ in range(3)]
        killed.process.kill()
        for stream in lost:
            with pytest.raises((openai.APIConnectionError, httpx.HTTPError)):
                list(stream)
        for stream in kept:
            assert [event.choices[0].finish_reason for event in stream][-1] == "length"
        # What the dead gateway had asked for is worked on no longer, and the other goes on.
        wait_for(lambda: pair.num_running() == 0)
        done = to_other.completions.create(model="assistant", prompt="Again", max_tokens=3)
        assert done.choices[0].finish_reason == "length"
        with pytest.raises(openai.APIConnectionError):
            to_killed.completions.create(model="assistant", prompt="Again", max_tokens=3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config", "nowhere.yaml"], "can't read nowhere.yaml"),
        (["--replicas", "here"], "HOST:PORT"),
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--keys", "nokeys.yaml"], "can't read nokeys.yaml"),
        (["--tls-cert", "cert.pem"], "both"),
    ],
)
def test_bad_input_is_told_in_one_line_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text(MANIFEST.format(generation=1, tpot="100ms"))
    given = {"--config": str(config), "--replicas": "127.0.0.1:1", "--listen": "127.0.0.1:0"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    command = ["gateway", *(word for pair in given.items() for word in pair)]
    assert main(command) == 2
    told_all = capsys.readouterr().err
    assert told in told_all
    assert "Traceback" not in told_all


def test_a_taken_port_is_a_clear_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text(MANIFEST.format(generation=1, tpot="100ms"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["--config", str(config), "--listen", listen, "--replicas", "127.0.0.1:1"]
        assert main(["gateway", *words]) == 1
    assert f"can't listen on {listen}" in capsys.readouterr().err
