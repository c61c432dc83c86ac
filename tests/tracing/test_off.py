"""Tracing is off unless it is asked for, and costs nothing then; else it says what it needs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sloserve.errors import BadInput
from sloserve.http import tracing

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
TRACES = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}
WITHOUT_SDK = """
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="opentelemetry.sdk")

sys.meta_path.insert(0, Gone())
from sloserve.cli import main
sys.exit(main(sys.argv[1:]))
"""
MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {name: assistant}
spec:
  model: {source: "builtin://sim"}
  sloClasses: [{name: chat, ttft: {target: 5s}, tpot: 100ms}]
"""


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/nonexistent", "PYTHONPATH": ":".join(sys.path), **(env or {})},
    )


@pytest.mark.parametrize(
    ("flag", "env", "on"),
    [
        (None, {}, False),
        (None, ENDPOINT, True),
        (None, TRACES, True),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "console"}, True),
        (None, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        (None, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
        (None, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318"}, False),
        (None, {"OTEL_SERVICE_NAME": "mine"}, False),
        (True, {}, True),
        (True, {"OTEL_TRACES_EXPORTER": "none"}, True),
        (False, ENDPOINT, False),
        (False, {"OTEL_TRACES_EXPORTER": "nonsense"}, False),
    ],
)
def test_the_flag_decides_and_else_the_standard_variables(
    flag: bool | None, env: dict[str, str], on: bool
) -> None:
    assert tracing.asked_for(flag, env) is on


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: is 'zipkin'; allowed: otlp"),
        (
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: is 'grpc'; allowed: http/protobuf",
        ),
        (
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: is 'grpc'",
        ),
    ],
)
def test_an_exporter_or_a_protocol_that_is_not_here_is_bad_input(
    env: dict[str, str], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        tracing.asked_for(None, env)


def test_the_more_special_protocol_decides() -> None:
    env = {
        **ENDPOINT,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    assert tracing.asked_for(None, env)


@pytest.mark.parametrize("env", [{}, ENDPOINT, {"OTEL_TRACES_EXPORTER": "none"}])
@pytest.mark.parametrize("flag", [None, True, False])
def test_children_decide_as_the_parent_was_told(flag: bool | None, env: dict[str, str]) -> None:
    inherited = {**env, **tracing.environment_of(flag, env)}
    assert tracing.asked_for(None, inherited) is tracing.asked_for(flag, env)


def test_off_is_a_tracer_that_keeps_nothing() -> None:
    tracer = tracing.make_tracer("gateway", flag=None, environ={}, service="assistant")
    assert tracer is tracing.NO_TRACER
    span = tracer.server("POST /", {"traceparent": "00-1-2-01"})
    assert not span.recording
    assert span.client("ask", {}) is span
    assert dict(span.headers) == {}
    assert span.trace_id == ""
    span.part("decode", start_s=1.0, end_s=2.0)
    span.event("first token", at_s=1.0)
    span.set({"a": 1})
    span.fail("why")
    span.end()
    tracer.close()


def test_off_nothing_of_opentelemetry_is_imported_by_us() -> None:
    # FastAPI imports the API for itself from some version on: that is taken off.
    done = run(
        "-c",
        "import sys, fastapi\n"
        "def seen(): return {m for m in sys.modules if m.startswith('opentelemetry')}\n"
        "before = seen()\n"
        "import sloserve.cli, sloserve.gateway.main, sloserve.frontend.main, sloserve.local.up\n"
        "from sloserve.http.tracing import NO_TRACER, make_tracer\n"
        "assert make_tracer('gateway', flag=None, environ={}, service='x') is NO_TRACER\n"
        "assert 'sloserve.http.otel' not in sys.modules\n"
        "assert 'opentelemetry.sdk' not in sys.modules\n"
        "assert 'google.protobuf' not in sys.modules\n"
        "print(sorted(seen() - before))\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def sources() -> Iterator[Path]:
    root = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
    for folder in ("server", "operator"):
        yield from (root / folder).rglob("*.py")


def test_only_one_module_imports_opentelemetry() -> None:
    importing = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.partition(".")[0] == "opentelemetry" for name in names):
                importing.add(path.name)
    assert importing == {"otel.py"}


@pytest.mark.parametrize("asked", ["flag", "variable"])
@pytest.mark.parametrize("command", ["gateway", "replica", "up"])
def test_asked_for_without_the_package_is_one_clear_line_and_exit_1(
    tmp_path: Path, command: str, asked: str
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(MANIFEST)
    words = {
        "gateway": ["--config", str(file), "--listen", ":0", "--replicas", "127.0.0.1:1"],
        "replica": ["--config", str(file), "--listen", "127.0.0.1:0"],
        "up": ["-f", str(file), "--port", "0", "--state", str(tmp_path / "state")],
    }[command]
    flag, env = (["--tracing"], {}) if asked == "flag" else ([], ENDPOINT)
    done = run("-c", WITHOUT_SDK, command, *words, *flag, env=env)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "needs opentelemetry.sdk, which is not installed" in line
    assert "pip install 'sloserve[tracing]'" in line
    assert not (tmp_path / "state").exists()


def test_a_wrong_exporter_is_bad_input_and_exit_2(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(MANIFEST)
    words = ["gateway", "--config", str(file), "--replicas", "127.0.0.1:1", "--listen", ":0"]
    done = run("-m", "sloserve.cli", *words, env={"OTEL_TRACES_EXPORTER": "zipkin"})
    assert done.returncode == 2
    assert "OTEL_TRACES_EXPORTER: is 'zipkin'" in done.stderr
