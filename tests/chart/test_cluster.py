"""The life of a release on a real API server: nodes are not needed, pods are not waited for."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not os.environ.get("KUBECONFIG"), reason="needs a Kubernetes cluster: set KUBECONFIG"
    ),
]
CRD = "crd/sloservices.sloserve.io"
NAMESPACE = "chart-test"

Tool = Callable[..., str]


@pytest.fixture
def kubectl(find_program: Callable[[str], str]) -> Iterator[Tool]:
    """kubectl in a namespace of its own; everything is gone afterwards."""
    path = find_program("kubectl")

    def run(*words: str, text: str = "", check: bool = True) -> str:
        done = subprocess.run(
            [path, "--namespace", NAMESPACE, *words],
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip() if done.returncode == 0 else ""

    if run("get", CRD, "-o", "name", check=False):
        pytest.skip("the cluster has the CRD already, and this test would remove it")
    run("create", "namespace", NAMESPACE)
    run("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    yield run
    run("delete", CRD, "--ignore-not-found")
    run("delete", "namespace", NAMESPACE, "--timeout=120s")  # the next test takes the name


@pytest.fixture
def release(find_program: Callable[[str], str], chart: Path, kubectl: Tool) -> Iterator[Tool]:
    """Helm in that namespace; releases that are left are uninstalled."""
    path = find_program("helm")

    def run(*words: str) -> str:
        done = subprocess.run(
            [path, "--namespace", NAMESPACE, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    for name in ("one", "two"):
        run("uninstall", name, "--ignore-not-found")


def test_services_and_their_kind_outlive_the_release_that_brought_them(
    release: Tool, kubectl: Tool, chart: Path, root: Path
) -> None:
    release("install", "one", str(chart))
    kubectl("wait", CRD, "--for=condition=Established", "--timeout=30s")
    sample = (root / "crds" / "samples" / "valid" / "minimal.yaml").read_text()
    kubectl("apply", "--server-side", "-f", "-", text=sample)
    uid = kubectl("get", "slosvc/sample", "-o", "jsonpath={.metadata.uid}")

    release("upgrade", "one", str(chart), "--set", "operator.logLevel=debug")
    args = "jsonpath={.spec.template.spec.containers[0].args}"
    assert "debug" in kubectl("get", "deployment/one-sloserve-operator", "-o", args)

    release("uninstall", "one")
    assert not kubectl("get", "deployments", "-o", "name")
    assert kubectl("get", "slosvc/sample", "-o", "jsonpath={.metadata.uid}") == uid

    owner = r"jsonpath={.metadata.annotations.meta\.helm\.sh/release-name}"
    notes = release("install", "two", str(chart))
    assert f"The CRD is that of release {NAMESPACE}/one" in notes
    assert kubectl("get", CRD, "-o", owner) == "one"

    release("upgrade", "two", str(chart), "--take-ownership", "--set", "crds.adopt=true")
    assert kubectl("get", CRD, "-o", owner) == "two"
    assert kubectl("get", "slosvc/sample", "-o", "jsonpath={.metadata.uid}") == uid


def test_a_second_look_changes_nothing(release: Tool, kubectl: Tool, chart: Path) -> None:
    release("install", "one", str(chart))
    version = "jsonpath={.metadata.resourceVersion} {.metadata.generation}"
    before = kubectl("get", "deployment/one-sloserve-operator", "-o", version)
    release("upgrade", "one", str(chart), "--dry-run=server")
    release("upgrade", "one", str(chart))
    after = kubectl("get", "deployment/one-sloserve-operator", "-o", version)
    assert after.split()[1] == before.split()[1], "an upgrade without a change is no rollout"
