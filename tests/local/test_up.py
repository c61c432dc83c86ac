"""`sloserve up` as a person meets it, with a simulated model."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the gateway: pip install 'sloserve[gateway]'")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_a_service_answers_follows_edits_survives_a_crash_and_drains(
    manifest: dict[str, Any], up: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    world = up(manifest)
    world.ready(2)
    assert world.ask()
    assert "curl -N" in eventually(lambda: "curl" in world.told() and world.told(), "the greeting")

    manifest["spec"]["sloClasses"].append(
        {"name": "code", "ttft": {"target": "1s"}, "tpot": "500ms"}
    )
    world.write(manifest)
    eventually(
        lambda: [c["name"] for c in world.get("/v1/slo")["classes"]] == ["chat", "code"],
        "the new class in the gateway",
    )
    eventually(
        lambda: all(r.get("generation") == 2 for r in world.get("/v1/slo")["replicas"]),
        "the new generation in every replica",
    )

    subprocess.run(["kill", "-9", str(world.children()["replica-1"])], check=True)
    eventually(lambda: "replica-1 ended" in world.told(), "the crash to be told")
    world.ready(2)
    assert world.ask()

    subprocess.run(["kill", "-9", str(world.children()["gateway"])], check=True)
    eventually(lambda: "gateway ended" in world.told(), "the gateway's crash to be told")
    assert world.ask()  # it waits for the next gateway instead of being refused

    manifest["spec"]["replicas"] = 1
    world.write(manifest)
    world.ready(1)
    eventually(lambda: set(world.children()) == {"gateway", "replica-0"}, "replica-1 to leave")

    manifest["spec"]["model"]["servedName"] = "other"
    world.write(manifest)
    eventually(lambda: "spec.model changed: stop and start" in world.told(), "the remark")
    manifest["spec"]["defaultClass"] = "none"
    world.write(manifest)
    eventually(lambda: "spec.defaultClass" in world.told(), "the refusal of a bad manifest")
    assert world.ask()

    status = subprocess.run(
        [sys.executable, "-m", "sloserve.cli", "status", "--url", world.url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "demo serves demo, generation 3" in status.stdout
    assert "replica-0" in status.stdout

    world.signal(signal.SIGINT)
    assert world.process.wait(timeout=60) == 130
    assert world.children() == {}


@linux
def test_killing_it_leaves_no_orphan(
    manifest: dict[str, Any], up: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    world = up(manifest)
    world.ready(2)
    assert set(world.children()) == {"gateway", "replica-0", "replica-1"}
    world.signal(signal.SIGKILL)
    world.process.wait()
    eventually(lambda: world.children() == {}, "everybody to be gone")


@linux
def test_an_interrupt_lets_the_answers_under_way_finish(
    manifest: dict[str, Any], up: Callable[..., Any]
) -> None:
    world = up(manifest)
    world.ready(2)
    with world.stream(num_tokens=300) as answer:
        assert answer.readline().startswith(b"data: ")
        world.signal(signal.SIGINT)
        assert answer.read().endswith(b"data: [DONE]\n\n")
    assert world.process.wait(timeout=60) == 130
    assert world.children() == {}


@linux
def test_a_second_interrupt_does_not_wait_for_them(
    manifest: dict[str, Any], up: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    manifest["spec"]["drain"]["timeout"] = "10m"
    world = up(manifest)
    world.ready(2)
    with world.stream(num_tokens=30_000) as answer:
        assert answer.readline().startswith(b"data: ")
        world.signal(signal.SIGINT)
        eventually(lambda: "draining" in world.told(), "the drain to begin")
        world.signal(signal.SIGINT)
        assert world.process.wait(timeout=60) == 130
    assert world.children() == {}


def run_up(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sloserve.cli", "up", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_taken_port_is_told_before_anything_starts(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    file = saved(manifest, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_up("-f", file, "--port", str(port), "--state", str(tmp_path / "state"))
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_bad_manifest_is_refused_with_file_line_and_field(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    manifest["spec"]["sloClasses"][0]["tpot"] = "fast"
    file = saved(manifest, tmp_path)
    done = run_up("-f", file)
    assert done.returncode == 2
    assert file in done.stderr
    assert "spec.sloClasses[0].tpot: 'fast' is not a duration" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_manifest_is_one_line(tmp_path: Path) -> None:
    done = run_up("-f", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "can't read" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_replica_can_t_do_ends_it_with_the_replica_s_own_words(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    manifest["spec"]["model"]["source"] = "builtin://sim?profile=nothing"
    state = tmp_path / "state"
    done = run_up("-f", saved(manifest, tmp_path), "--port", "0", "--state", str(state))
    assert done.returncode == 2
    assert "replica-" in done.stderr
    assert "no builtin profile of that name" in done.stderr


@linux
def test_a_service_that_runs_is_not_started_twice(
    manifest: dict[str, Any], up: Callable[..., Any]
) -> None:
    world = up(manifest)
    world.ready(2)
    done = run_up("-f", str(world.file), "--port", "0", "--state", str(world.state))
    assert done.returncode == 1
    assert f"in use by process {world.process.pid}" in done.stderr


def saved(manifest: dict[str, Any], folder: Path) -> str:
    import yaml

    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return str(path)
