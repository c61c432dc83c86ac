"""A model on a volume claim is served from there."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.pods import pod_spec, run_job
from e2e.harness.service import Service

if TYPE_CHECKING:
    from e2e.conftest import Release

EASY = {"name": "chat", "ttft": {"target": "30s"}, "tpot": "5s", "objectivePercent": 90}
CLAIM = "models"
COPY = """
import shutil, sys
from importlib.resources import files
shutil.copytree(str(files("sloserve.model") / "tiny"), sys.argv[1])
"""
REMOVE = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)"


@pytest.fixture
def source(kubectl: Kubectl, release: "Release", nodes: list[Obj]) -> Iterator[str]:
    """A claim that holds the small model; the source that names it."""
    volume = f"{kubectl.namespace}-models"
    kubectl.apply(*volume_and_claim(volume, kubectl.namespace, nodes[0]))

    def job(name: str, code: str, folder: str) -> None:
        image = f"localhost/sloserve-engine:{release.tag}"
        mounts = [{"name": "models", "mountPath": "/volume"}]
        command = ["python", "-c", code, f"/volume/{folder}"]
        pod = pod_spec(image, command, volumeMounts=mounts)
        pod["volumes"] = [{"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}}]
        run_job(kubectl, name, pod)

    folder = f"sloserve-{kubectl.namespace}"
    job("copy", COPY, f"{folder}/tiny model")
    yield f"pvc://{CLAIM}/{folder}/tiny model"
    job("remove", REMOVE, folder)
    kubectl("delete", "pv", volume, "--wait=false")


def volume_and_claim(volume: str, namespace: str, node: Obj) -> list[Obj]:
    """A folder that everybody may write to on one node, as a volume, and a claim on it."""
    name = node["metadata"]["labels"]["kubernetes.io/hostname"]
    there = {"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}
    shared: Obj = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    persistent = {
        **shared,
        "capacity": {"storage": "1Gi"},
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": "/tmp", "type": "Directory"},
        "claimRef": {"namespace": namespace, "name": CLAIM},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [there]}]}},
    }
    claim = {**shared, "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": persistent,
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM},
            "spec": claim,
        },
    ]


def test_a_model_on_a_claim_is_mounted_read_only_and_served(service: Service, source: str) -> None:
    engine = {
        "device": "cpu",
        "threads": 1,
        "resources": {"requests": {"cpu": "250m", "memory": "768Mi"}},
    }
    service.apply(model={"source": source}, engine=engine, sloClasses=[EASY])
    service.wait_ready(timeout_s=300)
    assert service.complete(max_tokens=4).status_code == 200
    (pod,) = service.pods("replica")
    claims = [
        v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
    ]
    assert claims == [{"claimName": CLAIM, "readOnly": True}]
