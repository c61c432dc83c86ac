"""The whole operator, Kopf and the real client included, against the fake cluster over HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, EVENT, LEASE, POD, SERVICE, Kind, Obj, Ref
from sloserve_operator.cluster import ApiError
from sloserve_operator.kube import Kube
from sloserve_operator.lease import Lease
from sloserve_operator.operator import Operator, watch
from sloserve_operator.settings import OperatorSettings

Fake = Any
Make = Callable[..., Obj]
OF_KOPF = (
    Kind("Namespace", "v1", "namespaces"),
    Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions"),
)
KINDS = (SERVICE, POD, EVENT, LEASE, *CHILD_KINDS.values(), *OF_KOPF)
NUM_CHILDREN = 11


class Api:
    """An API server's URLs over a fake cluster: discovery, lists, watches, writes."""

    def __init__(self, cluster: Fake) -> None:
        self.cluster = cluster
        self.watches: list[tuple[str, dict[str, str], asyncio.Queue[Obj]]] = []
        self.told: list[tuple[str, Obj]] = []
        """Every event with its plural: a watch begins behind the list that it follows."""
        self.writes: list[str] = []
        self.stop: Callable[[], Awaitable[None]]
        cluster.watchers.append(self._tell)
        self.app = web.Application()
        self.app.router.add_route("*", "/{path:.*}", self._answer)

    def _tell(self, kind: Kind, change: str, obj: Obj) -> None:
        event = {"type": change, "object": obj}
        self.told.append((kind.plural, event))
        for plural, wanted, queue in self.watches:
            if plural == kind.plural and _fits(event, wanted):
                queue.put_nowait(event)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = [p for p in request.path.split("/") if p]
        if parts in (["api"], ["apis"], ["version"]):
            groups = sorted({k.group for k in KINDS if k.group and not k.optional})
            versions = {k.group: k.version for k in KINDS}
            listed = [{"name": g, "preferredVersion": {"version": versions[g]},
                       "versions": [{"version": versions[g]}]} for g in groups]  # fmt: skip
            return web.json_response({"versions": ["v1"], "groups": listed})
        api_version = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if not rest:
            return self._discovery(api_version)
        namespace = rest[1] if rest[0] == "namespaces" and len(rest) > 2 else None
        rest = rest[2:] if namespace else rest
        kind = next((k for k in KINDS if k.plural == rest[0]), None)
        if kind is None:
            return web.json_response({"message": f"no {rest}"}, status=404)
        try:
            return await self._of_kind(request, kind, namespace, rest[1:])
        except ApiError as error:
            return web.json_response({"message": error.message}, status=error.status)

    def _discovery(self, api_version: str) -> web.Response:
        verbs = ["get", "list", "watch", "create", "patch", "delete", "update"]
        resources = [
            {"name": k.plural, "kind": k.kind, "singularName": k.kind.lower(), "namespaced": True,
             "verbs": verbs}
            for k in KINDS if k.api_version == api_version and not k.optional
        ]  # fmt: skip
        if not resources:
            return web.json_response({"message": "unknown"}, status=404)
        return web.json_response({"resources": resources})

    async def _of_kind(
        self, request: web.Request, kind: Kind, namespace: str | None, rest: list[str]
    ) -> web.StreamResponse:
        cluster, query = self.cluster, request.query
        if request.method == "GET" and not rest:
            wanted = query.get("labelSelector", "")
            if query.get("watch"):
                return await self._watch(request, kind, wanted)
            listed = await cluster.list_all(kind, namespace, labels=wanted)
            meta = {"resourceVersion": listed.version}
            return web.json_response({"metadata": meta, "items": listed.items})
        if request.method == "GET":
            found = await cluster.get(kind, namespace, rest[0])
            if found is None:
                return web.json_response({"message": "not found"}, status=404)
            return web.json_response(found)
        body = json.loads(await request.text())
        self.writes.append(f"{request.method} {request.path}")
        if request.method == "POST":
            return web.json_response(await cluster.create(kind, body), status=201)
        if request.method == "PUT":
            return web.json_response(await cluster.replace(kind, body))
        if request.method == "DELETE":
            uid = body["preconditions"]["uid"]
            await cluster.delete(kind, namespace, Ref(kind.kind, rest[0]), uid=uid)
            return web.json_response({})
        if "apply" not in request.headers["Content-Type"]:
            return web.json_response(await cluster.merge(kind, namespace, rest[0], body))
        told = await cluster.apply(
            kind, body, sub="/".join(rest[1:]), force=query["force"] == "true",
            dry_run="dryRun" in query,
        )  # fmt: skip
        return web.json_response(told)

    async def _watch(self, request: web.Request, kind: Kind, wanted: str) -> web.StreamResponse:
        labels = dict(pair.split("=") for pair in wanted.split(",") if pair)
        queue: asyncio.Queue[Obj] = asyncio.Queue()
        since = int(request.query["resourceVersion"])
        for plural, event in self.told:
            newer = int(event["object"]["metadata"]["resourceVersion"]) > since
            if newer and plural == kind.plural and _fits(event, labels):
                queue.put_nowait(event)
        entry = (kind.plural, labels, queue)
        self.watches.append(entry)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                event = await queue.get()
                await response.write(json.dumps(event).encode() + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            self.watches.remove(entry)


def _fits(event: Obj, wanted: dict[str, str]) -> bool:
    """Whether an event's object has these labels."""
    return wanted.items() <= (event["object"]["metadata"].get("labels") or {}).items()


@pytest.fixture
def api(
    cluster: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], contextlib.AbstractAsyncContextManager[Api]]:
    """`async with api() as server`: it serves, and KUBECONFIG leads to it."""

    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[Api]:
        made = Api(cluster)
        runner = web.AppRunner(made.app, access_log=None, shutdown_timeout=0.1)
        made.stop = runner.cleanup
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        config = tmp_path / "kubeconfig"
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": url}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                }
            )
        )
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        try:
            yield made
        finally:
            await runner.cleanup()

    return serve


@contextlib.asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Operator]:
    told = OperatorSettings(namespace="sys", **settings)
    kube = await Kube.connect(num_connections=12)
    lease = Lease(Kube(kube.api), namespace="sys", name="op", identity="one")
    kube.may_write = lease.valid
    operator = Operator(kube, lease=lease, settings=told, end=lambda code: None)
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(watch(operator, stop=stop, ready=ready))
    try:
        await asyncio.wait_for(ready.wait(), 60)
        yield operator
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)
        await kube.close()


async def until(true: Callable[[], bool]) -> None:
    """Wait for what is asserted."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def written_by_a_look(operator: Operator, server: Api) -> list[str]:
    """What looking at everything once makes it write, its lease left out."""
    before = len(server.writes)
    await operator.resync()
    await until(lambda: operator.queue.idle)
    await asyncio.sleep(0.1)
    return [write for write in server.writes[before:] if "leases" not in write]


def num_children(cluster: Fake) -> int:
    return len([key for key in cluster.objects if key[0] in CHILD_KINDS])


@pytest.mark.parametrize("watched", [(), ("team",)], ids=["cluster-wide", "namespaced"])
def test_what_kopf_hears_becomes_children_and_nothing_is_written_at_rest(
    cluster: Fake,
    api: Callable[[], contextlib.AbstractAsyncContextManager[Api]],
    manifest: Make,
    watched: tuple[str, ...],
) -> None:
    async def story() -> None:
        async with asyncio.timeout(120), api() as server, running(watched=watched) as operator:
            cluster.put(manifest())
            await until(lambda: num_children(cluster) == NUM_CHILDREN)
            cluster.put(manifest(replicas=3))
            await until(lambda: cluster.one("Deployment", "chat-replica")["spec"]["replicas"] == 3)
            cluster.remove("Service", "team", "chat-gateway")
            await until(lambda: num_children(cluster) == NUM_CHILDREN)
            await until(lambda: operator.queue.idle)
            while await written_by_a_look(operator, server):
                pass  # until its own writes have come back to it
            assert await written_by_a_look(operator, server) == []
            service = cluster.one("SLOService", "chat")
            assert "finalizers" not in service["metadata"]
            assert "annotations" not in service["metadata"]
            assert service["status"]["selector"] == names.selector_text("chat", "replica")
            cluster.remove("SLOService", "team", "chat")
            await until(lambda: operator.cache.known() == [])
            await operator.lease.release()
            assert cluster.objects["Lease", "sys", "op"]["spec"]["holderIdentity"] == ""
            await server.stop()  # Kopf waits seconds for the server's tasks, which aren't its own

    asyncio.run(story())
