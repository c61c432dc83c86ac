"""One operator process: standby, lead, watch, work, resync, until told to stop."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import kopf

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, POD, SERVICE, Key, Kind, Obj
from sloserve_operator.cache import Cache
from sloserve_operator.cluster import ApiError, Cluster
from sloserve_operator.figures import Figures
from sloserve_operator.handlers import make_registry, make_settings
from sloserve_operator.lease import Lease
from sloserve_operator.observed import Now
from sloserve_operator.polling import Poller
from sloserve_operator.posting import Poster
from sloserve_operator.reconciler import Reconciler
from sloserve_operator.settings import OperatorSettings
from sloserve_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

LOST_LEASE = 3
"""Exit code of a process that lost its Lease."""
SHOW_S = 5.0
AGAIN_S = 5.0
"""Between two tries of the first look."""
KINDS_S = 15.0
"""Between two looks at which optional kinds the cluster has: a question of a few bytes."""
REPORTED_S = 0.5
"""From a gateway's news to the look at its service: the other gateways are asked meanwhile."""
SETTLE_S = 0.05
"""Kopf sets signal handlers of its own beside the start of the start."""
OPTIONAL = {name: kind for name, kind in CHILD_KINDS.items() if kind.optional}
STALE_FACTOR = 3.0
"""So many resyncs missed in a row, and the process is not alive any more."""


def now() -> Now:
    """This moment."""
    return Now(datetime.now(UTC), time.monotonic())


class Operator:
    """
    Everything that runs beside Kopf. `cluster` writes only with the Lease. `end` ends the process
    at once with a code: without the Lease nothing may be written, not even to clean up.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        lease: Lease,
        settings: OperatorSettings,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.settings = settings
        self.lease = lease
        self.cache = Cache()
        self.queue = WorkQueue()
        self.figures = Figures()
        self._cluster = cluster
        self._end = end
        self._heard_s = time.monotonic()
        self._barred: frozenset[str] = frozenset()
        """Optional kinds that the cluster has, and that this operator may not use."""
        self._tasks: list[asyncio.Task[None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self.poller = Poller(
            gateways=lambda: self.cache.pods_of(names.GATEWAY),
            asleep=self._asleep,
            changed=lambda key: self.queue.add_after(key, REPORTED_S),
            clock=time.monotonic,
            poll_s=settings.poll_s,
        )
        poster = Poster(cluster, wrote=self._wrote)
        self.reconciler = Reconciler(
            cluster,
            self.cache,
            settings=settings,
            reports=self.poller.fresh,
            poster=poster,
            figures=self.figures,
            clock=now,
        )

    async def start(self) -> None:
        """Wait for the Lease and the CRD, fill the cache, start to work. Then Kopf may watch."""
        self._keeper = asyncio.create_task(self.lease.keep(lambda: self._end(LOST_LEASE)))
        try:
            lease = f"{self.settings.namespace}/{self.settings.lease}"
            log.info("waiting for the Lease", extra={"lease": lease})
            await self.lease.leading.wait()
            while not await self._first_look():
                await asyncio.sleep(AGAIN_S)
        except BaseException:  # Kopf runs no cleanup for a start that was cancelled
            await self.stop()
            raise
        work = (
            self.queue.run(self.reconciler.reconcile, num_workers=self.settings.num_workers),
            self.poller.run(),
            self._resync_for_ever(),
            self._show(),
        )
        self._tasks = [asyncio.create_task(one) for one in work]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def _first_look(self) -> bool:
        """Whether the cache is full; False: the cluster is not as it must be yet."""
        try:
            if not await self._cluster.knows(SERVICE):
                log.warning("the CRD is not installed yet", extra={"kind": SERVICE.kind})
                return False
            await self.resync()
        except ApiError as error:
            log.warning("can't look at the cluster yet", extra={"error": error.message})
            return False
        return True

    async def stop(self) -> None:
        """Stop to work, then give the Lease to whoever stands by."""
        tasks = [*self._tasks, *([self._keeper] if self._keeper is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.lease.release()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the operator can't go on", exc_info=error)
            self._end(1)  # the pod's restart policy starts a healthy one

    def heard(self, kind: Kind, change: str | None, obj: Obj) -> None:
        """A watch told something."""
        self._heard_s = time.monotonic()
        key = self.cache.drop(obj) if change == "DELETED" else self.cache.put(obj)
        if key is not None:
            self.queue.add(key)

    async def resync(self) -> None:
        """Look at everything; what a watch has lost comes right here. Lists only, no writes."""
        present = await self._optional_kinds()
        usable = frozenset([name for name in present if await self._may_use(CHILD_KINDS[name])])
        self._barred, self.reconciler.kinds = present - usable, usable
        for name in OPTIONAL.keys() - usable:
            self.cache.forget_kind(name)
        for namespace in self.settings.watched or (None,):
            await self._list(SERVICE, namespace, labels=self.settings.selector)
            for kind in (*CHILD_KINDS.values(), POD):
                if not kind.optional or kind.kind in self.reconciler.kinds:
                    await self._list(kind, namespace, labels=names.OURS)
        self._heard_s = time.monotonic()
        self.queue.forget_others(self.cache.known())
        for key in self.cache.known():
            self.queue.add(key)

    async def _optional_kinds(self) -> frozenset[str]:
        """The optional kinds that the cluster has."""
        return frozenset([n for n, kind in OPTIONAL.items() if await self._cluster.knows(kind)])

    async def _kinds_changed(self) -> bool:
        """Whether an optional kind came or went since the last complete look."""
        known = await self._optional_kinds() - self._barred
        if known == self.reconciler.kinds:
            return False
        log.info("the cluster's optional kinds changed", extra={"kinds": sorted(known)})
        return True

    async def _may_use(self, kind: Kind) -> bool:
        """Whether we may use an optional kind that the cluster has."""
        try:
            for namespace in self.settings.watched or (None,):
                await self._cluster.list_all(kind, namespace, labels=names.OURS)
        except ApiError as error:
            if error.status == 404:
                return False  # it went away a moment ago
            if error.status != 403:
                raise
            log.warning("no right to list a kind: left out", extra={"kind": kind.plural})
            return False
        return True

    async def _list(self, kind: Kind, namespace: str | None, *, labels: str) -> None:
        listed = await self._cluster.list_all(
            kind, namespace, labels=labels, keep=self.cache.known_as
        )
        changed = self.cache.replace(
            kind.kind, listed.items, version=listed.version, namespace=namespace
        )
        for key in changed:
            self.queue.add(key)

    async def _resync_for_ever(self) -> None:
        due_s = time.monotonic() + self.settings.resync_s
        while True:
            await asyncio.sleep(min(KINDS_S, self.settings.resync_s))
            try:
                if time.monotonic() >= due_s or await self._kinds_changed():
                    await self.resync()
                    due_s = time.monotonic() + self.settings.resync_s
            except ApiError as error:
                log.warning("resync failed", extra={"error": error.message})

    async def _show(self) -> None:
        while True:
            self.figures.services(self.cache.services())
            self.show()
            await asyncio.sleep(SHOW_S)

    def show(self) -> None:
        """Refresh the gauges that no decision touches."""
        self.figures.set("sloserve_operator_leader", value=float(self.lease.valid()))
        self.figures.set("sloserve_operator_queue_length", value=len(self.queue))
        age_s = time.monotonic() - self._heard_s
        self.figures.set("sloserve_operator_event_age_seconds", value=age_s)

    def problem(self) -> str:
        """What keeps this process from being alive; empty when nothing does."""
        age_s = time.monotonic() - self._heard_s
        if self.lease.valid() and age_s > STALE_FACTOR * self.settings.resync_s:
            return f"no event and no resync for {age_s:.0f} s"
        return ""

    def _asleep(self, key: Key) -> bool:
        live = self.cache.children(key).get(names.deployment(key.name, names.REPLICA))
        return live is not None and (live.get("spec") or {}).get("replicas") == 0

    def _wrote(self, verb: str) -> None:
        self.figures.add("sloserve_operator_writes_total", verb)


async def watch(
    operator: Operator,
    *,
    stop: asyncio.Event,
    ready: asyncio.Event | None = None,
    starting: Callable[[], None] = lambda: None,
) -> None:
    """
    Run Kopf around the operator until `stop` is set.

    `starting` is called when Kopf has set its signal handlers, and may replace them.
    """

    async def start() -> None:
        await asyncio.sleep(SETTLE_S)
        starting()
        await operator.start()

    settings = operator.settings
    clusterwide = not settings.watched
    registry = make_registry(operator.heard, start=start, stop=operator.stop)
    await kopf.operator(
        registry=registry,
        settings=make_settings(clusterwide=clusterwide, selector=settings.selector),
        clusterwide=clusterwide,
        namespaces=settings.watched,
        standalone=True,
        stop_flag=stop,
        ready_flag=ready,
    )
