"""What the operator writes, seen by a real API server."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator.api import CHILD_KINDS, LEASE
from sloserve_operator.cluster import ApiError
from sloserve_operator.conditions import Type
from sloserve_operator.kube import Kube
from sloserve_operator.lease import Lease
from sloserve_operator.settings import Images

Running = Any
Start = Callable[..., contextlib.AbstractAsyncContextManager[Running]]
Put = Callable[..., None]
Kubectl = Callable[..., str]
NUM_CHILDREN = 11

pytestmark = pytest.mark.e2e


def test_a_real_api_server_takes_every_child_as_it_is_written(
    namespace: str, running: Start, put: Put, kubectl: Kubectl
) -> None:
    pod = {"spec": {"containers": [{"name": "replica", "env": [{"name": "A", "value": "b"}]}]}}
    engine = {"device": "cuda", "tensorParallelSize": 2, "podTemplate": pod,
              "resources": {"limits": {"cpu": "1500m", "memory": "2048Mi"}}}  # fmt: skip
    model = {"source": "hf://org/model", "cache": {"claimName": "models"},
             "tokenSecretRef": {"name": "hub"}}  # fmt: skip
    gateway = {"replicas": 0, "auth": {"secretName": "keys"}, "tls": {"secretName": "cert"},
               "service": {"type": "NodePort"}}  # fmt: skip

    async def story() -> None:
        async with running() as run:
            put(engine=engine, model=model, gateway=gateway)
            await run.until_condition(Type.READY, "True", "Idle")
            assert len(await run.children()) == NUM_CHILDREN
            service = await run.service()
            assert service["status"]["observedGeneration"] == service["metadata"]["generation"]
            await run.at_rest()

    asyncio.run(story())


def test_a_restart_writes_nothing_and_an_upgrade_rolls_no_engine(
    namespace: str, running: Start, put: Put, kubectl: Kubectl
) -> None:
    async def story() -> None:
        put()
        async with running() as run:
            await run.until_condition(Type.READY, "True", "Idle")
            await run.at_rest()
        async with running() as run:
            await run.at_rest()
        async with running(images=Images(gateway="r/gateway:next")) as run:

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


def test_changes_by_hand_are_put_back_and_scaling_is_followed(
    namespace: str, running: Start, put: Put, kubectl: Kubectl
) -> None:
    async def story() -> None:
        put()
        async with running() as run:
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


def test_a_typo_in_a_pod_template_is_told_and_nothing_changes(
    namespace: str, running: Start, put: Put, kubectl: Kubectl
) -> None:
    async def story() -> None:
        put()
        async with running() as run:
            await run.until_condition(Type.READY, "True", "Idle")
            before = await images_of(run)
            typo = {"podTemplate": {"spec": {"nodeSelectr": {"a": "b"}}}}
            put(engine=typo)
            told = await run.until_condition(Type.ACCEPTED, "False", "InvalidPodTemplate")
            assert "nodeSelectr" in told["message"]
            assert await images_of(run) == before
            put()
            await run.until_condition(Type.ACCEPTED, "True", "Accepted")

    asyncio.run(story())


def test_a_foreign_object_is_left_as_it_is(
    namespace: str, running: Start, put: Put, kubectl: Kubectl
) -> None:
    async def story() -> None:
        kubectl("-n", namespace, "create", "configmap", "chat-config", "--from-literal=mine=1")
        put()
        async with running() as run:
            await run.until_condition(Type.ACCEPTED, "False", "NameConflict")
            found = await run.kube.get(CHILD_KINDS["ConfigMap"], namespace, "chat-config")
            assert found is not None
            assert found["data"] == {"mine": "1"}

    asyncio.run(story())


def test_children_go_with_their_service_and_nothing_hangs(
    namespace: str, running: Start, put: Put, kubectl: Kubectl
) -> None:
    async def story() -> None:
        put()
        async with running() as run:
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


def test_a_lease_is_made_taken_over_and_guarded(
    namespace: str, running: Start, put: Put, kubectl: Kubectl
) -> None:
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
