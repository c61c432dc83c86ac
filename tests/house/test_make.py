"""make, CI and the documents speak of the same targets."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def run_make(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def targets(root: Path) -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert phony
    return set(phony[1].split())


def test_help_tells_every_target(root: Path) -> None:
    told = set(re.findall(r"^  make (\w+)", run_make(root, "help"), re.MULTILINE))
    assert told == targets(root)
    assert {"setup", "check", "test", "up", "bench", "help"} <= told


def test_documents_and_ci_name_only_targets_that_exist(root: Path) -> None:
    files = [*root.glob("*.md"), *(root / "examples").glob("*.md"), root / ".ci" / "run"]
    named = {
        target
        for path in files
        for target in re.findall(r"(?:^|`|&& )make ([a-z0-9-]+)", path.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= targets(root)


def test_cpu_builds_of_torch_are_the_default_and_cuda_is_asked_for(root: Path) -> None:
    cpu = run_make(root, "-n", "setup", "TORCH=cpu", "VENV=/nonexistent")
    assert "whl/cpu" in cpu
    cuda = run_make(root, "-n", "setup", "TORCH=cuda", "VENV=/nonexistent")
    assert "whl/cpu" not in cuda
    assert "torch==" in cuda


def test_ci_runs_the_same_commands_as_a_person(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"^make (\w+)(?:$| \|\|)", script.read_text(), re.MULTILINE) == [
        "setup",
        "test",
        "check",
        "e2e",
    ]
    assert "- run: .ci/run" in (root / ".github" / "workflows" / "ci.yml").read_text()
