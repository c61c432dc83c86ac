"""The chart, rendered by the real Helm."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

Obj = dict[str, Any]

HOW = {
    "helm": "helm is not installed: put it on PATH or name it in HELM",
    "kubectl": "kubectl is not installed: put it on PATH or name it in KUBECTL",
    "kubeconform": "kubeconform is not installed: put it on PATH or name it in KUBECONFORM",
}

VARIANTS: dict[str, Obj] = {
    "default": {},
    "namespaced": {
        "watch": {"namespaces": ["team-a", "team-b"], "selector": "tier=gold"},
        "rbac": {"aggregate": False},
        "crds": {"enabled": False},
        "networkPolicy": {"apiServerPorts": [8443]},
    },
    "everything": {
        "commonLabels": {"cost-centre": "llm"},
        "images": {
            "registry": "registry.example.com/llm/",
            "tag": "1.2.3",
            "pullPolicy": "Always",
            "pullSecrets": ["registry"],
            "gateway": {"digest": f"sha256:{'0123456789abcdef' * 4}"},
        },
        "serviceAccount": {"name": "sloserve", "annotations": {"team": "llm"}},
        "operator": {
            "replicas": 2,
            "logLevel": "debug",
            "logFormat": "human",
            "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
            "podLabels": {"team": "llm"},
            "podAnnotations": {"team": "llm"},
            "nodeSelector": {"kubernetes.io/arch": "arm64"},
            "tolerations": [{"key": "infra", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "system-cluster-critical",
        },
        "services": {
            "fsGroup": None,
            "networkPolicies": False,
            "replicaRequests": {"cpu": 2, "memory": "1Gi"},
            "gatewayRequests": {"cpu": None, "memory": None},
            "monitorLabels": {"release": "prometheus", "team": "llm"},
        },
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        },
        "runbookUrl": "https://wiki.example.com/runbook",
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "sloserve"}},
    },
}


def program(name: str) -> str:
    """The path of a program, from its variable or PATH; the test is skipped without it."""
    found = os.environ.get(name.upper()) or shutil.which(name)
    if not found:
        pytest.skip(HOW[name])
    return found


@dataclass(frozen=True)
class Helm:
    """Helm on one chart. Answers are kept: every start of Helm costs a tenth of a second."""

    path: str
    chart: Path
    answers: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, values: Obj | None = None) -> subprocess.CompletedProcess[str]:
        """One command, with values by a file."""
        return subprocess.run(
            [self.path, *words, "--values", "-"],
            input=yaml.safe_dump(values or {}),
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"},
            check=False,
        )

    def text(self, values: Obj | None = None) -> str:
        """The manifests as `helm template` prints them."""
        key = repr(values)
        if key not in self.answers:
            words = ("template", "sloserve", str(self.chart), "--namespace", "sloserve-system")
            done = self.run(*words, values=values)
            assert done.returncode == 0, done.stderr
            self.answers[key] = done.stdout
        return self.answers[key]

    def objects(self, values: Obj | None = None) -> list[Obj]:
        """The rendered objects."""
        return [obj for obj in yaml.safe_load_all(self.text(values)) if obj]

    def refusal(self, values: Obj) -> str:
        """What Helm says to values that it refuses."""
        done = self.run("template", "sloserve", str(self.chart), values=values)
        assert done.returncode != 0, "these values are accepted"
        return done.stderr


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of pyproject.toml."""
    return next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())


@pytest.fixture(scope="session")
def chart(root: Path) -> Path:
    """The chart's folder."""
    return root / "charts" / "sloserve"


@pytest.fixture(scope="session")
def helm(chart: Path) -> Helm:
    """Helm on the chart; skipped where it is missing."""
    return Helm(program("helm"), chart)


@pytest.fixture(scope="session")
def find_program() -> Callable[[str], str]:
    """The path of a program; the test is skipped without it."""
    return program


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """The name of a set of values."""
    return str(request.param)


@pytest.fixture
def values(variant: str) -> Obj:
    """The set of values of that name."""
    return VARIANTS[variant]


@pytest.fixture
def objects(helm: Helm, values: Obj) -> list[Obj]:
    """What the chart makes of those values."""
    return helm.objects(values)


@pytest.fixture(scope="session")
def variants() -> dict[str, Obj]:
    """Every set of values."""
    return VARIANTS
