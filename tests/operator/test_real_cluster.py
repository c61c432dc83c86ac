"""
The same operator against a real API server: KUBECONFIG names one with nothing to lose.

No pod runs here: services have no replicas and no gateways. Stories with pods are in e2e/.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sloserve_operator.api import CHILD_KINDS, LEASE, SERVICE, Key, Obj
from sloserve_operator.cluster import ApiError
from sloserve_operator.conditions import Type, find
from sloserve_operator.kube import Kube
from sloserve_operator.lease import Lease
from sloserve_operator.operator import Operator, watch
from sloserve_operator.settings import Images, OperatorSettings

CRD = Path(__file__).parents[2] / "crds" / "sloservices.sloserve.io.yaml"
NUM_CHILDREN = 11

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not os.environ.get("KUBECONFIG"), reason="KUBECONFIG names no cluster to test against"
    ),
    pytest.mark.skipif(not CRD.is_file(), reason=f"{CRD.name} is not in crds/"),
]


def kubectl(*words: str, given: str | None = None) -> str:
    """Run kubectl; its output."""
    done = subprocess.run(
        ["kubectl", *words], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def crd() -> None:
    """The CRD is there, and established."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    kubectl("wait", "--for=condition=Established", "crd/sloservices.sloserve.io")


@pytest.fixture
def namespace(crd: None) -> Iterator[str]:
    """A namespace of its own that enforces the restricted Pod Security standard."""
    name = f"sloserve-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def a_service(namespace: str, **spec: Any) -> Obj:
    classes = [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}]
    body = {"model": {"source": "builtin://sim?profile=h200"}, "sloClasses": classes,
            "replicas": 0, "gateway": {"replicas": 0}}  # fmt: skip
    return {
        "apiVersion": "sloserve.io/v1alpha1",
        "kind": "SLOService",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": body | spec,
    }


def put(service: Obj) -> None:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=json.dumps(service))


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

    async def until(self, true: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(30):
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


@contextlib.asynccontextmanager
async def running(namespace: str, **settings: Any) -> AsyncIterator[Running]:
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


def test_a_real_api_server_takes_every_child_as_it_is_written(namespace: str) -> None:
    pod = {"spec": {"containers": [{"name": "replica", "env": [{"name": "A", "value": "b"}]}]}}
    engine = {"device": "cuda", "tensorParallelSize": 2, "podTemplate": pod,
              "resources": {"limits": {"cpu": "1500m", "memory": "2048Mi"}}}  # fmt: skip
    model = {"source": "hf://org/model", "cache": {"claimName": "models"},
             "tokenSecretRef": {"name": "hub"}}  # fmt: skip
    gateway = {"replicas": 0, "auth": {"secretName": "keys"}, "tls": {"secretName": "cert"},
               "service": {"type": "NodePort"}}  # fmt: skip

    async def story() -> None:
        async with running(namespace) as run:
            put(a_service(namespace, engine=engine, model=model, gateway=gateway))
            await run.until_condition(Type.READY, "True", "Idle")
            assert len(await run.children()) == NUM_CHILDREN
            service = await run.service()
            assert service["status"]["observedGeneration"] == service["metadata"]["generation"]
            await run.at_rest()

    asyncio.run(story())


def test_a_restart_writes_nothing_and_an_upgrade_rolls_no_engine(namespace: str) -> None:
    async def story() -> None:
        put(a_service(namespace))
        async with running(namespace) as run:
            await run.until_condition(Type.READY, "True", "Idle")
            await run.at_rest()
        async with running(namespace) as run:
            await run.at_rest()
        async with running(namespace, images=Images(gateway="r/gateway:next")) as run:

            async def upgraded() -> bool:
                images = await images_of(run)
                return images["chat-gateway"] == "r/gateway:next"

            await run.until(upgraded)
            assert (await images_of(run))["chat-replica"] == Images().gateway
            await run.at_rest()

    asyncio.run(story())


async def images_of(run: Running) -> dict[str, str]:
    found = await run.kube.list_all(CHILD_KINDS["Deployment"], run.namespace)
    return {
        d["metadata"]["name"]: d["spec"]["template"]["spec"]["containers"][0]["image"]
        for d in found.items
    }


def test_changes_by_hand_are_put_back_and_scaling_is_followed(namespace: str) -> None:
    async def story() -> None:
        put(a_service(namespace))
        async with running(namespace) as run:
            await run.until_condition(Type.READY, "True", "Idle")
            await asyncio.to_thread(kubectl, "-n", namespace, "delete", "service", "chat-gateway")
            kubectl("-n", namespace, "set", "env", "deployment/chat-replica", "HOME=/mine")

            async def back() -> bool:
                children = {(c["kind"], c["metadata"]["name"]): c for c in await run.children()}
                env = children["Deployment", "chat-replica"]["spec"]["template"]["spec"][
                    "containers"
                ][0]["env"]
                home = next(e["value"] for e in env if e["name"] == "HOME")
                return ("Service", "chat-gateway") in children and home == "/home/sloserve"

            await run.until(back)
            kubectl("-n", namespace, "scale", "slosvc/chat", "--replicas=3")

            async def scaled() -> bool:
                live = await run.kube.get(CHILD_KINDS["Deployment"], namespace, "chat-replica")
                return live is not None and live["spec"]["replicas"] == 3

            await run.until(scaled)

    asyncio.run(story())


def test_a_typo_in_a_pod_template_is_told_and_nothing_changes(namespace: str) -> None:
    async def story() -> None:
        put(a_service(namespace))
        async with running(namespace) as run:
            await run.until_condition(Type.READY, "True", "Idle")
            before = await images_of(run)
            typo = {"podTemplate": {"spec": {"nodeSelectr": {"a": "b"}}}}
            put(a_service(namespace, engine=typo))
            told = await run.until_condition(Type.ACCEPTED, "False", "InvalidPodTemplate")
            assert "nodeSelectr" in told["message"]
            assert await images_of(run) == before
            put(a_service(namespace))
            await run.until_condition(Type.ACCEPTED, "True", "Accepted")

    asyncio.run(story())


def test_a_foreign_object_is_left_as_it_is(namespace: str) -> None:
    async def story() -> None:
        kubectl("-n", namespace, "create", "configmap", "chat-config", "--from-literal=mine=1")
        put(a_service(namespace))
        async with running(namespace) as run:
            await run.until_condition(Type.ACCEPTED, "False", "NameConflict")
            found = await run.kube.get(CHILD_KINDS["ConfigMap"], namespace, "chat-config")
            assert found is not None
            assert found["data"] == {"mine": "1"}

    asyncio.run(story())


def test_children_go_with_their_service_and_nothing_hangs(namespace: str) -> None:
    async def story() -> None:
        put(a_service(namespace))
        async with running(namespace) as run:
            await run.until_condition(Type.READY, "True", "Idle")
            assert "finalizers" not in (await run.service())["metadata"]
        kubectl("-n", namespace, "delete", "slosvc/chat", "--timeout=20s")  # without an operator
        kube = await Kube.connect(num_connections=2)
        try:
            async with asyncio.timeout(30):
                while (await kube.list_all(CHILD_KINDS["Deployment"], namespace)).items:
                    await asyncio.sleep(0.2)
        finally:
            await kube.close()

    asyncio.run(story())


def test_a_lease_is_made_taken_over_and_guarded(namespace: str) -> None:
    async def story() -> None:
        kube = await Kube.connect(num_connections=4)
        try:
            leases = [
                Lease(kube, namespace=namespace, name="op", identity=name) for name in ("a", "b")
            ]
            keepers = [asyncio.create_task(lease.keep(lambda: None)) for lease in leases]
            async with asyncio.timeout(20):
                while not any(lease.valid() for lease in leases):
                    await asyncio.sleep(0.05)
            assert sum(lease.valid() for lease in leases) == 1
            leader, standby = sorted(leases, key=lambda lease: not lease.valid())
            keepers[leases.index(leader)].cancel()
            await leader.release()
            await asyncio.wait_for(standby.leading.wait(), 20)
            found = await kube.get(LEASE, namespace, "op")
            assert found is not None
            assert found["spec"]["holderIdentity"] == standby.identity
            for keeper in keepers:
                keeper.cancel()
            stale = {**found["metadata"], "resourceVersion": "1"}
            with pytest.raises(ApiError):
                await kube.replace(LEASE, {**found, "metadata": stale})
        finally:
            await kube.close()

    asyncio.run(story())
