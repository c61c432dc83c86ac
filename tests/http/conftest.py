"""Service specs for the shared HTTP parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sloserve.slo.manifest import parse_service
from sloserve.slo.service import ServiceSpec

MANIFEST = """\
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata:
  name: assistant
spec:
  model:
    source: builtin://sim
  sloClasses:
    - name: chat
      ttft: {slowdown: 5, floor: 200ms}
      tpot: 100ms
    - name: code
      ttft: {target: 500ms}
      tpot: 50ms
      onInfeasible: Decline
      tightest: {ttft: 200ms, tpot: 20ms}
    - name: reason
      ttft: {target: 1s}
      stages: [{name: thinking, tpot: 50ms, until: "</think>"}, {name: answer, tpot: 100ms}]
    - name: agent
      ttft: {target: 2s}
      stages: [{name: loop, tpot: 20ms}, {name: final, tpot: 80ms}]
  defaultClass: chat
"""


@pytest.fixture
def manifest_text() -> str:
    """A manifest with four classes."""
    return MANIFEST


@pytest.fixture
def manifest_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a manifest into a file."""

    def write(text: str) -> Path:
        path = tmp_path / "service.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def spec() -> ServiceSpec:
    """The service of that manifest."""
    raw: Any = yaml.safe_load(MANIFEST)
    return parse_service(raw)
