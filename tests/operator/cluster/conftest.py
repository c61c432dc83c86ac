"""
The same operator against a real API server: KUBECONFIG names one with nothing to lose.

No pod runs here: services have no replicas and no gateways. Stories with pods are in e2e/.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sloserve_operator.api import CHILD_KINDS, SERVICE, Key, Obj
from sloserve_operator.conditions import Type, find
from sloserve_operator.kube import Kube
from sloserve_operator.lease import Lease
from sloserve_operator.operator import Operator, watch
from sloserve_operator.settings import OperatorSettings

CRD = Path(__file__).parents[3] / "crds" / "sloservices.sloserve.io.yaml"
CRD_NAME = "crd/sloservices.sloserve.io"


def run_kubectl(*words: str, given: str | None = None) -> str:
    """Run kubectl; its output."""
    program = os.environ.get("KUBECTL") or "kubectl"
    done = subprocess.run([program, *words], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def crd() -> Iterator[None]:
    """The CRD is there while the module runs; without a cluster its tests are skipped."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster to test against")
    if not shutil.which(os.environ.get("KUBECTL") or "kubectl"):
        pytest.skip("kubectl is not installed: put it on PATH or name it in KUBECTL")
    there = run_kubectl("get", CRD_NAME, "--ignore-not-found", "-o", "name")
    run_kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    run_kubectl("wait", "--for=condition=Established", CRD_NAME)
    yield
    if not there:
        run_kubectl("delete", CRD_NAME)


@pytest.fixture
def namespace(crd: None) -> Iterator[str]:
    """A namespace of its own that enforces the restricted Pod Security standard."""
    name = f"sloserve-{uuid.uuid4().hex[:8]}"
    run_kubectl("create", "namespace", name)
    run_kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    run_kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubectl() -> Callable[..., str]:
    """`kubectl("get", "pods")`: its output."""
    return run_kubectl


@pytest.fixture
def put(namespace: str) -> Callable[..., None]:
    """`put(engine={...}, name="chat")`: apply a service without pods, as a person does."""

    def apply(name: str = "chat", **spec: Any) -> None:
        classes = [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}]
        body = {"model": {"source": "builtin://sim?profile=h200"}, "sloClasses": classes,
                "replicas": 0, "gateway": {"replicas": 0}}  # fmt: skip
        service = {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": name, "namespace": namespace},
            "spec": body | spec,
        }
        words = ("apply", "--server-side", "--force-conflicts", "-f", "-")
        run_kubectl(*words, given=json.dumps(service))

    return apply


class Running:
    """An operator that runs in this process, and its namespace."""

    def __init__(self, kube: Kube, operator: Operator, namespace: str) -> None:
        self.kube, self.operator, self.namespace = kube, operator, namespace
        self.writes: list[str] = []

    async def service(self) -> Obj:
        found = await self.kube.get(SERVICE, self.namespace, "chat")
        assert found is not None
        return found

    async def children(self) -> list[Obj]:
        found: list[Obj] = []
        for kind in CHILD_KINDS.values():
            if not kind.optional:
                found += (await self.kube.list_all(kind, self.namespace)).items
        return [obj for obj in found if obj["metadata"].get("ownerReferences")]

    async def until(self, true: Callable[[], Awaitable[bool]], *, timeout_s: float = 30) -> None:
        """Wait for what is asserted."""
        async with asyncio.timeout(timeout_s):
            while not await true():
                await asyncio.sleep(0.1)

    async def until_condition(self, kind: Type, status: str, reason: str) -> Obj:
        async def holds() -> bool:
            told = find((await self.service()).get("status") or {}, kind)
            return (told.get("status"), told.get("reason")) == (status, reason)

        await self.until(holds)
        return find((await self.service())["status"], kind)

    async def at_rest(self) -> None:
        """Nothing to do, and nothing written while one looks again at everything."""

        async def idle() -> bool:
            return self.operator.queue.idle

        await self.until(idle)
        await asyncio.sleep(1.0)  # what was written comes back as events
        await self.until(idle)
        self.writes.clear()
        await self.operator.resync()
        await self.operator.reconciler.reconcile(Key(self.namespace, "chat"))
        assert self.writes == []


@pytest.fixture
def running(namespace: str) -> Callable[..., contextlib.AbstractAsyncContextManager[Running]]:
    """`async with running(images=...) as run`: an operator for this namespace."""
    return lambda **settings: run_operator(namespace, **settings)


@contextlib.asynccontextmanager
async def run_operator(namespace: str, **settings: Any) -> AsyncIterator[Running]:
    told = OperatorSettings(namespace=namespace, watched=(namespace,), **settings)
    kube = await Kube.connect(num_connections=12)
    lease = Lease(Kube(kube.api), namespace=namespace, name="op", identity=uuid.uuid4().hex)
    operator = Operator(kube, lease=lease, settings=told, end=lambda code: None)
    run = Running(kube, operator, namespace)
    plain = kube._write

    async def counted(method: str, path: str, *args: Any, **kwargs: Any) -> Obj:
        if "dryRun" not in str(kwargs) and "/events" not in path:
            run.writes.append(f"{method} {path}")
        return await plain(method, path, *args, **kwargs)

    kube._write = counted  # type: ignore[method-assign]
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(watch(operator, stop=stop, ready=ready))
    try:
        await asyncio.wait_for(ready.wait(), 30)
        yield run
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)
        await kube.close()
