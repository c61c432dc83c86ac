"""A small true API server in memory, a controller that makes pods, and builders."""

import asyncio
import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.operator.managed_fields import Path, assign, leaves, lookup, unset

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, POD, SERVICE, Kind, Obj, Ref
from sloserve_operator.cluster import ApiError, Listed, as_it_is
from sloserve_operator.observed import Now
from sloserve_operator.settings import OperatorSettings


def deletion_cost(pod: Obj) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(names.DELETION_COST, 0))


class FakeCluster:
    """
    Server-side apply with field owners, versions, generations, uids, a status subresource, garbage
    collection and watchers: what the operator relies on, and nothing else.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Obj] = {}
        self.owned: dict[tuple[str, str, str], dict[str, set[Path]]] = {}
        self.version = 100
        self.writes: list[tuple[str, str, str]] = []
        self.reads = 0
        self.watchers: list[Callable[[Kind, str | None, Obj], None]] = []
        self.known = {"PodMonitor"}
        self.may_write: Callable[[], bool] = lambda: True
        self.fail: Callable[[str, str, str], ApiError | None] = lambda verb, kind, name: None
        """(verb, kind, name) -> the error to raise instead."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        await self._enter("get", kind, name)
        found = self.objects.get((kind.kind, namespace, name))
        return copy.deepcopy(found)

    async def list_all(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "",
        keep: Callable[[Obj], Obj] = as_it_is,
    ) -> Listed:  # fmt: skip
        await self._enter("list", kind, "")
        wanted = dict(pair.split("=") for pair in labels.split(",") if pair)
        found = [
            keep(copy.deepcopy(obj))
            for (k, ns, _), obj in self.objects.items()
            if k == kind.kind
            and namespace in (None, ns)
            and wanted.items() <= (obj["metadata"].get("labels") or {}).items()
        ]
        return Listed(found, str(self.version))

    async def apply(
        self, kind: Kind, obj: Obj, *, sub: str = "", force: bool = True, dry_run: bool = False
    ) -> Obj:
        meta = obj["metadata"]
        await self._enter("dry-run" if dry_run else "apply", kind, meta["name"])
        at = (kind.kind, meta["namespace"], meta["name"])
        manager = f"operator{sub}"
        live = self.objects.get(at)
        if live is None and sub:
            raise ApiError(404, f"{kind.plural} {meta['name']!r} not found")
        wanted = {path: value for path, value in leaves(copy.deepcopy(obj))}
        wanted = {p: v for p, v in wanted.items() if p[0] not in ("apiVersion", "kind")}
        if sub:
            wanted = {p: v for p, v in wanted.items() if p[0] == sub}
        result = copy.deepcopy(live) if live is not None else {"metadata": {}}
        owners = copy.deepcopy(self.owned.get(at, {}))
        if not force:
            self._conflicts(result, wanted, owners, manager)
        for path in owners.get(manager, set()) - set(wanted):
            if not any(path in paths for who, paths in owners.items() if who != manager):
                unset(result, path)
        for path, value in wanted.items():
            assign(result, path, copy.deepcopy(value))
        for paths in owners.values():
            paths -= set(wanted)
        owners[manager] = set(wanted)
        result["apiVersion"], result["kind"] = kind.api_version, kind.kind
        self._default(result)
        if dry_run:
            return result
        self.owned[at] = owners
        return self._store(at, result, verb=f"apply{'/' + sub if sub else ''}")

    def _conflicts(
        self, live: Obj, wanted: dict[Path, Any], owners: dict[str, set[Path]], manager: str
    ) -> None:
        for path, value in wanted.items():
            others = [who for who, paths in owners.items() if who != manager and path in paths]
            try:
                place, last = lookup(live, path)
                differs = place[last] != value
            except (KeyError, IndexError, TypeError):
                continue
            if others and differs:
                raise ApiError(409, f"conflict with {others[0]!r}: {path}")

    async def merge(self, kind: Kind, namespace: str, name: str, change: Obj) -> Obj:
        await self._enter("merge", kind, name)
        live = self.objects.get((kind.kind, namespace, name))
        if live is None:
            raise ApiError(404, f"{name} not found")
        uid = (change.get("metadata") or {}).get("uid")
        if uid not in (None, live["metadata"]["uid"]):
            raise ApiError(409, "the uid differs")
        result = copy.deepcopy(live)
        for path, value in leaves(change):
            assign(result, path, value)
        return self._store((kind.kind, namespace, name), result, verb="merge")

    async def delete(self, kind: Kind, namespace: str, ref: Ref, *, uid: str) -> None:
        await self._enter("delete", kind, ref.name)
        live = self.objects.get((ref.kind, namespace, ref.name))
        if live is not None and live["metadata"]["uid"] == uid:
            self.writes.append(("delete", ref.kind, ref.name))
            self.remove(ref.kind, namespace, ref.name)

    async def create(self, kind: Kind, obj: Obj) -> Obj:
        meta = obj["metadata"]
        await self._enter("create", kind, meta["name"])
        at = (kind.kind, meta["namespace"], meta["name"])
        if at in self.objects:
            raise ApiError(409, f"{meta['name']} already exists")
        return self._store(at, copy.deepcopy(obj), verb="create")

    async def replace(self, kind: Kind, obj: Obj) -> Obj:
        meta = obj["metadata"]
        await self._enter("replace", kind, meta["name"])
        at = (kind.kind, meta["namespace"], meta["name"])
        if at not in self.objects:
            raise ApiError(404, f"{meta['name']} not found")
        if self.objects[at]["metadata"]["resourceVersion"] != meta.get("resourceVersion"):
            raise ApiError(409, "the object has been modified")
        return self._store(at, copy.deepcopy(obj), verb="replace")

    async def knows(self, kind: Kind) -> bool:
        self.reads += 1
        return not kind.optional or kind.kind in self.known

    async def _enter(self, verb: str, kind: Kind, name: str) -> None:
        await asyncio.sleep(0)
        error = self.fail(verb, kind.kind, name)
        if error is not None:
            raise error
        if verb in ("get", "list"):
            self.reads += 1
        if verb != "get" and kind.optional and kind.kind not in self.known:
            raise ApiError(404, "the server could not find the requested resource")

    def _default(self, obj: Obj) -> None:
        """Some of what a real server adds and rewrites."""
        if obj["kind"] == "Deployment":
            pod = obj["spec"]["template"]["spec"]
            if "nosuchfield" in pod:
                raise ApiError(
                    500, "failed to create typed patch object: .nosuchfield not declared"
                )
            pod.setdefault("dnsPolicy", "ClusterFirst")
            for container in pod["containers"]:
                container.setdefault("terminationMessagePath", "/dev/termination-log")
                for amounts in (container.get("resources") or {}).values():
                    if isinstance(amounts, dict) and amounts.get("cpu") == "1000m":
                        amounts["cpu"] = "1"
        if obj["kind"] == "Service":
            obj["spec"].setdefault("sessionAffinity", "None")

    def _store(self, at: tuple[str, str, str], obj: Obj, *, verb: str) -> Obj:
        live = self.objects.get(at)
        meta = obj["metadata"]
        if live is not None:
            same = {k: v for k, v in obj.items() if k != "metadata"} == {
                k: v for k, v in live.items() if k != "metadata"
            } and {**meta, "resourceVersion": 0} == {**live["metadata"], "resourceVersion": 0}
            if same:
                return copy.deepcopy(live)
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        meta.setdefault("uid", f"uid-{self.version}")
        meta.setdefault("generation", 1)
        if live is not None and obj.get("spec") != live.get("spec"):
            meta["generation"] = live["metadata"].get("generation", 1) + 1
        self.objects[at] = obj
        if verb:
            self.writes.append((verb, at[0], at[2]))
        self._tell(at[0], "MODIFIED" if live else "ADDED", obj)
        return copy.deepcopy(obj)

    def _tell(self, kind: str, change: str, obj: Obj) -> None:
        kinds = {**CHILD_KINDS, POD.kind: POD, SERVICE.kind: SERVICE}
        if kind in kinds:
            for watcher in list(self.watchers):
                watcher(kinds[kind], change, copy.deepcopy(obj))

    # What users and controllers do, at once and without being counted as the operator's writes.

    def put(self, obj: Obj, *, manager: str = "user") -> Obj:
        """Create or update as somebody else."""
        meta = obj["metadata"]
        at = (obj["kind"], meta.get("namespace", "team"), meta["name"])
        live = self.objects.get(at)
        merged = copy.deepcopy(obj)
        known = dict((live or {}).get("metadata") or {})
        kept = {k: v for k, v in known.items() if k in ("uid", "generation", "resourceVersion")}
        merged["metadata"] = {**known, **copy.deepcopy(meta), **kept, "namespace": at[1]}
        if live is not None and "status" in live and "status" not in obj:
            merged["status"] = live["status"]
        paths = {p for p, _ in leaves(obj) if p[0] not in ("apiVersion", "kind")}
        self.owned.setdefault(at, {}).setdefault(manager, set()).update(paths)
        return self._store(at, merged, verb="")

    def remove_kind(self, kind: str) -> None:
        """Delete a CRD, and with it every object of the kind."""
        self.known.discard(kind)
        for at in [at for at in self.objects if at[0] == kind]:
            del self.objects[at]

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Delete; what it owned goes too, as the garbage collector does."""
        gone = self.objects.pop((kind, namespace, name), None)
        self.owned.pop((kind, namespace, name), None)
        if gone is None:
            return
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._tell(kind, "DELETED", gone)
        uid = gone["metadata"]["uid"]
        for (k, ns, n), obj in list(self.objects.items()):
            owners = obj["metadata"].get("ownerReferences") or ()
            if any(owner["uid"] == uid for owner in owners):
                self.remove(k, ns, n)

    def all(self, kind: str, namespace: str = "team") -> list[Obj]:
        """Objects of a kind, by name."""
        found = sorted(item for item in self.objects.items() if item[0][0] == kind)
        return [obj for (_, ns, _), obj in found if ns == namespace]

    def one(self, kind: str, name: str, namespace: str = "team") -> Obj:
        """An object as it is now."""
        return self.objects[kind, namespace, name]

    def roll_out(self, *, ready: bool = True) -> None:
        """What garbage collector, controllers, scheduler and kubelets come to."""
        uids = {obj["metadata"]["uid"] for obj in self.objects.values()}
        for (kind, namespace, name), obj in list(self.objects.items()):
            if any(o["uid"] not in uids for o in obj["metadata"].get("ownerReferences") or ()):
                self.remove(kind, namespace, name)
        for deployment in self.all("Deployment"):
            wanted = int(deployment["spec"]["replicas"])
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            name, ns = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
            mark = repr(deployment["spec"]["template"])
            pods = [
                p for p in self.all("Pod")
                if p["metadata"]["labels"].get(names.COMPONENT) == labels[names.COMPONENT]
                and p["metadata"]["labels"][names.INSTANCE] == labels[names.INSTANCE]
            ]  # fmt: skip
            stale = [p for p in pods if p["spec"]["mark"] != mark]
            fresh = sorted((p for p in pods if p["spec"]["mark"] == mark), key=deletion_cost)
            for pod in [*stale, *fresh[: max(0, len(fresh) - wanted)]]:
                self.remove("Pod", ns, pod["metadata"]["name"])
            for _ in range(wanted - len(fresh)):
                number = self.version + 1
                pod = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": f"{name}-{number}", "namespace": ns, "labels": labels},
                    "spec": {"mark": mark},
                    "status": {
                        "podIP": f"10.0.{number // 250}.{number % 250}",
                        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
                    },
                }
                self.put(pod, manager="kubelet")
            status = {
                "observedGeneration": deployment["metadata"]["generation"],
                "replicas": wanted,
                "updatedReplicas": wanted,
                "readyReplicas": wanted if ready else 0,
            }
            if deployment.get("status") != status:
                told = {**copy.deepcopy(deployment), "status": status}
                self._store(("Deployment", ns, name), told, verb="")


@pytest.fixture
def cluster() -> FakeCluster:
    """An empty cluster."""
    return FakeCluster()


@pytest.fixture
def settings() -> OperatorSettings:
    """An operator that is told little."""
    return OperatorSettings()


MANIFEST: Obj = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "chat", "namespace": "team"},
    "spec": {
        "model": {"source": "builtin://sim?profile=h200"},
        "sloClasses": [
            {"name": "fast", "ttft": {"target": "1s"}, "tpot": "50ms", "objectivePercent": 90},
            {"name": "slow", "ttft": {"target": "9s"}, "tpot": "500ms", "objectivePercent": 90},
        ],
        "replicas": 2,
    },
}


@pytest.fixture
def manifest() -> Callable[..., Obj]:
    """`manifest(replicas=3, engine={...}, name="other")`: a service, as in the cluster."""

    def make(name: str = "chat", **spec: Any) -> Obj:
        made = copy.deepcopy(MANIFEST)
        made["metadata"] |= {"name": name, "uid": f"uid-of-{name}", "generation": 1}
        made["metadata"]["resourceVersion"] = "1"
        made["spec"] |= {key: value for key, value in spec.items() if value is not None}
        return made

    return make


@pytest.fixture
def moment() -> Callable[[float], Now]:
    """`moment(60)`: a minute after noon, on both clocks."""
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    return lambda s: Now(noon + timedelta(seconds=s), 1000.0 + s)


@pytest.fixture
def report() -> Callable[..., Obj]:
    """A gateway's report as JSON: `report(classes={"fast": (30, 29)}, replicas=[...])`."""

    def make(
        classes: dict[str, tuple[int, int]] | None = None,
        replicas: list[Obj] | None = None,
        generation: int = 1,
        demand: dict[str, Obj] | None = None,
        **fields: Any,
    ) -> Obj:
        tallies = classes or {"fast": (0, 0), "slow": (0, 0)}
        told = []
        for name, (total, attained) in tallies.items():
            tally = {"eligible": total, "attained": attained}
            told.append(
                {
                    "name": name,
                    "pending": 0,
                    "earliestFirstTokenMs": 20.0,
                    "sinceStart": tally,
                    "last5m": tally,
                    "lastMinute": (demand or {}).get(name, {}),
                }
            )
        return {
            "service": "chat",
            "generation": generation,
            "draining": False,
            "inflight": 0,
            "pending": 0,
            "classes": told,
            "replicas": replicas or [],
        } | fields

    return make


@pytest.fixture
def replica() -> Callable[..., Obj]:
    """A replica in a gateway's report."""

    def make(address: str = "10.0.0.1:8000", state: str = "ready", **fields: Any) -> Obj:
        frontier = {name: {"minTokens": 1, "maxTokens": 4096} for name in ("fast", "slow")}
        return {
            "address": address,
            "state": state,
            "generation": 1,
            "running": 0,
            "waiting": 0,
            "tokenSupplyPerS": 1000.0,
            "freeBlocks": 100,
            "totalBlocks": 100,
            "frontier": frontier,
        } | fields

    return make
