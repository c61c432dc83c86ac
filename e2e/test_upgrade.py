"""The chart is upgraded from the one before, and rolled back, under a running service."""

import io
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from e2e.harness.service import Service
from e2e.harness.traffic import Traffic

ROOT = Path(__file__).parents[1]
CHART = Path("charts") / "sloserve"
Release = Any


@pytest.fixture
def chart_before(tmp_path: Path) -> Path:
    """The chart of the last tag; where there is none, the chart before its last change."""
    git = shutil.which("git")

    def say(*words: str) -> bytes:
        if git is None:
            return b""
        return subprocess.run([git, *words], cwd=ROOT, capture_output=True, check=False).stdout

    tag = say("describe", "--tags", "--abbrev=0", "HEAD^").decode().strip()
    change = say("log", "-1", "--format=%H", "--", str(CHART)).decode().strip()
    packed = say("archive", "--format=zip", tag or f"{change}^", str(CHART))
    if not packed:
        pytest.skip("needs the chart before this one: the project's history is not here")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path)
    return tmp_path / CHART


def test_a_running_service_notices_neither_an_upgrade_nor_a_rollback(
    changing: Release, service: Service, chart_before: Path
) -> None:
    changing.install(chart=chart_before)
    service.ready()
    engines = service.processes("replica")
    with Traffic(service, rate=3.0) as traffic:
        words = ("--reset-then-reuse-values", "--wait", "--timeout", "3m")
        changing.helm("upgrade", changing.name, str(ROOT / CHART), *words)
        service.change(gateway={"maxHops": 2})
        service.wait_ready()
        changing.helm("rollback", changing.name, "--wait", "--timeout", "3m")
        service.change(gateway={"maxHops": 3})
        service.wait_ready()
    assert traffic.seen.lost == []
    assert len(traffic.seen.records) > 10
    assert service.processes("replica") == engines
