"""`sloserve up` with a collector: its children export, and log what they were told to."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {name: assistant}
spec:
  model: {source: "builtin://sim?profile=h200"}
  sloClasses: [{name: chat, ttft: {target: 20s}, tpot: 5s}]
  drain: {timeout: 5s}
"""


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, str], Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(self.path, body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def take(self, path: str, body: bytes) -> None:
        """One export."""
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        for resource_spans in request.resource_spans:
            about = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
            for scope in resource_spans.scope_spans:
                self.spans += [(about, span) for span in scope.spans]

    def services(self) -> set[str]:
        """Who has sent spans."""
        return {about["service.name"] for about, _ in self.spans}


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(10)


def wait_for(holds: Callable[[], bool], *, at_most_s: float = 60.0) -> None:
    """Until it holds."""
    end_s = time.monotonic() + at_most_s
    while True:
        try:
            if holds():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="children die with their parent on Linux")
def test_up_passes_tracing_and_the_form_of_logs_on_to_its_children(
    tmp_path: Path, collector: Collector
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(MANIFEST)
    state, told = tmp_path / "state", tmp_path / "told.log"
    env = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    words = ["up", "-f", str(file), "--port", "0", "--state", str(state), "--plain", "--tracing"]
    words += ["--log-level", "debug", "--log-format", "json"]
    with told.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sloserve.cli", *words],
            stdout=output, stderr=output, env=env,
        )  # fmt: skip
    try:
        wait_for(lambda: "curl -N " in told.read_text())
        url = told.read_text().split("curl -N ")[1].split("/v1/")[0].strip()
        answer = httpx.post(
            f"{url}/v1/completions",
            json={"model": "assistant", "prompt": "Once", "max_tokens": 3},
            headers={"x-request-id": "req-9"},
            timeout=30,
        )
        assert answer.status_code == 200
        wait_for(lambda: collector.services() == {"sloserve-gateway", "sloserve-replica"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    names = sorted((about["service.name"], span.name) for about, span in collector.spans)
    assert names == [
        ("sloserve-gateway", "POST /v1/completions"),
        ("sloserve-gateway", "ask replica"),
        ("sloserve-replica", "POST /v1/completions"),
        ("sloserve-replica", "decode"),
        ("sloserve-replica", "prefill"),
        ("sloserve-replica", "queue"),
    ]
    assert len({span.trace_id for _, span in collector.spans}) == 1
    for about, _ in collector.spans:
        assert about["sloserve.service"] == "assistant"
        assert about["deployment.environment.name"] == "test"
    for name in ("gateway", "replica-0"):
        text = (state / "logs" / f"{name}.log").read_text()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        assert [ln["request_id"] for ln in lines if ln["message"] == "ended"] == ["req-9"]
        messages = [line["message"] for line in lines]
        assert messages.index("drain begins") < messages.index("drain ends")
