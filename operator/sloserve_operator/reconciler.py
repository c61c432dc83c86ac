"""Observe -> decide -> apply -> status, for one service at a time."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from sloserve_operator import names
from sloserve_operator.api import (
    CLAIM,
    EVENT,
    POD,
    SERVICE,
    Key,
    Kind,
    Obj,
    Ref,
    annotation_of,
    controller_of,
    kind_of,
    ref_of,
    uid_of,
    version_of,
)
from sloserve_operator.cache import Cache
from sloserve_operator.cluster import ApiError, Cluster
from sloserve_operator.compare import in_place
from sloserve_operator.decide import Decision, PodNote, decide
from sloserve_operator.figures import Figures
from sloserve_operator.known import FOREIGN_S, LOOK_AGAIN_S, Known
from sloserve_operator.observed import Claim, Now, Observed
from sloserve_operator.outline import lean, outline
from sloserve_operator.pods import stuck
from sloserve_operator.posting import Poster
from sloserve_operator.reports import GatewayReport
from sloserve_operator.settings import OperatorSettings
from sloserve_operator.status import due_s, without_news_of_days

log = logging.getLogger(__name__)

ECHO_S = 0.5
"""
What a write brings back may hold what others changed meanwhile, and its event is no news then:
so there is one more look.
"""
NOTES_S = 30.0
"""Between two looks at the Events of pods that don't come up."""

Reports = Callable[[Iterable[Obj]], Mapping[str, GatewayReport]]


class Reconciler:
    """Brings services to their declared state, from the cache, through `cluster`."""

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        *,
        settings: OperatorSettings,
        reports: Reports,
        poster: Poster,
        figures: Figures,
        clock: Callable[[], Now],
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._settings = settings
        self._reports = reports
        self._poster = poster
        self._figures = figures
        self._clock = clock
        self._known: dict[Key, Known] = {}
        self._upgrading: set[Key] = set()
        self.kinds: frozenset[str] = frozenset()
        """Optional kinds that the cluster knows."""

    async def reconcile(self, key: Key) -> float | None:
        """
        One look at one service; seconds until the next if nothing happens, None: no hurry.

        Raises ApiError when the API server can't be reached or fails: to be tried again.
        """
        service = self._cache.service(key)
        if service is None:
            self._forget(key)
            return None
        started_s, wrote = time.perf_counter(), 0
        try:
            again_s, wrote = await self._look(key, service)
        except ApiError as error:
            if error.terminating:
                return None
            self._figures.add("sloserve_operator_reconciles_total", "failed")
            raise
        took_s = time.perf_counter() - started_s
        self._figures.observe("sloserve_operator_reconcile_seconds", value=took_s)
        self._figures.add("sloserve_operator_reconciles_total", "changed" if wrote else "unchanged")
        return again_s

    async def _look(self, key: Key, service: Obj) -> tuple[float | None, int]:
        known = self._known.setdefault(key, Known())
        now = self._clock()
        observed = await self._observe(key, service, known, now)
        decision = decide(observed, settings=self._settings, memory=known.memory, now=now)
        num_writes = await self._act(known, decision, observed, now)
        echo_s = ECHO_S if num_writes else None
        news = known.foreign.keys() - observed.foreign or known.refused.keys() - observed.refused
        if news or self.kinds != observed.kinds:
            observed = await self._observe(key, service, known, now)  # say so at once
            decision = decide(observed, settings=self._settings, memory=known.memory, now=now)
        known.memory = decision.memory
        self._count_upgrade(key, decision)
        told_writes, status_s = await self._tell(service, known, decision, now)
        num_writes += told_writes
        retries_s = (
            (known.foreign, FOREIGN_S),
            (known.refused, LOOK_AGAIN_S),
            (any(map(stuck, observed.pods)), NOTES_S),
        )
        retry_s = next((s for waits, s in retries_s if waits), None)
        if self._changed_meanwhile(key, service):
            echo_s = ECHO_S
        times_s = [s for s in (decision.again_s, retry_s, status_s, echo_s) if s is not None]
        return min(times_s, default=None), num_writes

    def _changed_meanwhile(self, key: Key, service: Obj) -> bool:
        """Whether what the writes brought back is of another generation than was looked at."""
        now = self._cache.service(key) or service
        before, after = (obj["metadata"].get("generation") for obj in (service, now))
        return bool(before != after)

    async def _observe(self, key: Key, service: Obj, known: Known, now: Now) -> Observed:
        generation = int(service["metadata"].get("generation", 0))
        if generation != known.generation:  # the spec changed: everything deserves a new try
            known.generation = generation
            known.refused.clear()
            known.claims.clear()
        known.expire(now.mono_s)
        pods = self._cache.pods(key)
        await self._look_at_pods(key, pods, known, now)
        await self._look_at_claims(service, known, now)
        return Observed(
            service=service,
            children=self._cache.children(key),
            pods=pods,
            reports=self._reports(pods),
            notes=known.notes,
            claims={name: claim for name, (_, claim) in known.claims.items()},
            foreign=frozenset(known.foreign),
            refused={ref: message for ref, (_, message) in known.refused.items()},
            kinds=self.kinds,
            may_upgrade=key in self._upgrading
            or len(self._upgrading) < self._settings.max_rollouts,
        )

    async def _look_at_pods(self, key: Key, pods: tuple[Obj, ...], known: Known, now: Now) -> None:
        """Only Events tell why a volume does not mount; they are read for stuck pods alone."""
        waiting = {uid_of(pod) for pod in pods if stuck(pod)}
        if not waiting:
            known.notes = ()
        elif now.mono_s - known.notes_s >= NOTES_S:
            known.notes_s = now.mono_s
            try:
                listed = await self._cluster.list_all(
                    EVENT, key.namespace, fields="involvedObject.kind=Pod,type=Warning"
                )
            except ApiError as error:
                log.debug("no Events of pods", extra={"error": error.message})
                return
            known.notes = tuple(
                e for e in listed.items if (e.get("involvedObject") or {}).get("uid") in waiting
            )

    async def _look_at_claims(self, service: Obj, known: Known, now: Now) -> None:
        """The access modes of the cache's claim; what may not be read is simply not known."""
        cache = ((service.get("spec") or {}).get("model") or {}).get("cache") or {}
        name = cache.get("claimName") if isinstance(cache, dict) else None
        if not isinstance(name, str) or name in known.claims:
            return
        try:
            found = await self._cluster.get(CLAIM, service["metadata"]["namespace"], name)
        except ApiError as error:
            log.debug("a claim can't be read", extra={"claim": name, "error": error.message})
            return
        modes = tuple(((found or {}).get("spec") or {}).get("accessModes") or ())
        known.claims[name] = (now.mono_s, Claim(found is not None, modes))

    async def _act(self, known: Known, decision: Decision, observed: Observed, now: Now) -> int:
        """Carry the decision out, but for the status; the number of writes."""
        num_writes = await self._annotate(decision.pod_costs)
        own = observed.own
        pending = [c for c in decision.children if not self._in_place(known, c, own)]
        if not await self._dry_runs(known, pending, observed, now):
            return num_writes
        for child in pending:
            live = own.get(ref_of(child))
            if not await self._apply(known, child, live, now):
                return num_writes
            self._count_scaling(child, live, decision.status)
            num_writes += 1
        for child in decision.prune:
            meta = child["metadata"]
            await self._cluster.delete(
                kind_of(child), meta["namespace"], ref_of(child), uid=uid_of(child)
            )
            log.info("deleted", extra=_names(child))
            self._figures.add("sloserve_operator_writes_total", "delete")
            num_writes += 1
        return num_writes + await self._annotate(decision.pod_notes)

    def _in_place(self, known: Known, child: Obj, own: Mapping[Ref, Obj]) -> bool:
        ref = ref_of(child)
        live = own.get(ref)
        if live is None:
            return False
        if known.seen.get(ref) == _seen(child, live):
            return True
        if not in_place(child, live) and known.accepted.get(ref) != _mark(child, live):
            return False
        self._settle(known, child, live)
        return True

    def _settle(self, known: Known, child: Obj, live: Obj) -> None:
        """`live` is as wanted: no more of it is kept than decisions read."""
        known.seen[ref_of(child)] = _seen(child, live)
        self._cache.shrink(outline(lean(live), child))

    async def _dry_runs(
        self, known: Known, pending: list[Obj], observed: Observed, now: Now
    ) -> bool:
        """Ask the API server about pod templates with an overlay before anything changes."""
        spec = observed.service.get("spec") or {}
        overlays = {
            names.REPLICA: (spec.get("engine") or {}).get("podTemplate"),
            names.GATEWAY: (spec.get("gateway") or {}).get("podTemplate"),
        }
        for child in pending:
            part = child["metadata"]["labels"].get(names.COMPONENT)
            if child["kind"] != "Deployment" or not overlays.get(part):
                continue
            try:
                await self._cluster.apply(kind_of(child), child, dry_run=True)
            except ApiError as error:
                if not error.refuses:
                    raise
                known.refused[ref_of(child)] = (now.mono_s, error.message)
                log.warning("refused", extra={**_names(child), "error": error.message})
                return False
        return True

    async def _apply(self, known: Known, child: Obj, live: Obj | None, now: Now) -> bool:
        """Apply one child; False when it can't be, which is noted."""
        kind, ref = kind_of(child), ref_of(child)
        namespace = child["metadata"]["namespace"]
        try:
            if live is None:
                live = await self._cluster.get(kind, namespace, ref.name)
                if live is not None and not _is_ours(live, child):
                    known.foreign[ref] = now.mono_s
                    log.warning("belongs to somebody else", extra=_names(child))
                    return False
            applied = await self._cluster.apply(kind, child, force=live is not None)
        except ApiError as error:
            if error.status == 409 and live is None:  # somebody made one a moment ago
                known.foreign[ref] = now.mono_s
                log.warning("belongs to somebody else", extra=_names(child))
                return False
            if error.refuses:
                known.refused[ref] = (now.mono_s, error.message)
                log.warning("refused", extra={**_names(child), "error": error.message})
                return False
            if error.status == 404 and kind.optional:
                self._lose(kind)
                return True
            raise
        log.info("changed" if live is not None else "created", extra=_names(child))
        self._figures.add("sloserve_operator_writes_total", "apply")
        self._cache.put(applied)
        known.accepted[ref] = _mark(child, applied)
        self._settle(known, child, applied)
        return True

    def _lose(self, kind: Kind) -> None:
        """The cluster has no such kind any more: nothing of it is wanted until it is back."""
        log.warning("the cluster has no such kind any more", extra={"kind": kind.kind})
        self.kinds -= {kind.kind}
        self._cache.forget_kind(kind.kind)

    async def _annotate(self, notes: Iterable[PodNote]) -> int:
        num_writes = 0
        for note in notes:
            try:
                meta = note.pod["metadata"]
                change = {"uid": meta["uid"], "annotations": dict(note.annotations)}
                pod = await self._cluster.merge(
                    POD, meta["namespace"], meta["name"], {"metadata": change}
                )
            except ApiError as error:
                if error.status not in (403, 404, 409) or error.terminating:
                    raise
                if error.status == 403:
                    log.warning("no right to annotate pods", extra={"error": error.message})
                continue  # or it is gone
            self._cache.put(pod)
            self._figures.add("sloserve_operator_writes_total", "apply")
            num_writes += 1
        return num_writes

    async def _tell(
        self, service: Obj, known: Known, decision: Decision, now: Now
    ) -> tuple[int, float | None]:
        """
        Write status if that is due, and post Events.

        (Number of writes, seconds until a status that can wait is to be written.)
        """
        previous = service.get("status") or {}
        wanted = decision.status
        if wanted is None:
            return 0, None
        num_writes = 0
        counted_s = now.mono_s - known.counted_s
        wait_s = due_s(previous, wanted, since_s=now.mono_s - known.status_s, counted_s=counted_s)
        if wait_s == 0.0:
            told = without_news_of_days(wanted, previous=previous, counted_s=counted_s)
            meta = service["metadata"]
            body = {
                "apiVersion": SERVICE.api_version,
                "kind": SERVICE.kind,
                "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
                "status": told,
            }
            try:
                written = await self._cluster.apply(SERVICE, body, sub="status")
            except ApiError as error:
                if error.status == 404:
                    return 0, None  # deleted meanwhile
                raise
            known.status_s = now.mono_s
            self._figures.add("sloserve_operator_writes_total", "status")
            if uid_of(written) == uid_of(service):
                self._cache.put(written)
            num_writes = 1
            if told is wanted:
                known.counted_s = now.mono_s
                num_writes += await self._annotate(decision.counted)
        await self._poster.post(service, decision.notices, now)
        return num_writes, wait_s or None

    def _count_scaling(self, child: Obj, live: Obj | None, status: Obj | None) -> None:
        is_replica = child["metadata"]["labels"].get(names.COMPONENT) == names.REPLICA
        if child["kind"] != "Deployment" or not is_replica or live is None:
            return
        change = int(child["spec"]["replicas"]) - int((live.get("spec") or {}).get("replicas", 1))
        if change:
            direction, why = "up" if change > 0 else "down", (status or {}).get("bindingConstraint")
            log.info(
                "scaled",
                extra={"replicas": int(child["spec"]["replicas"]), "by": change, "reason": why},
            )
            self._figures.add("sloserve_operator_scalings_total", direction, str(why))

    def _count_upgrade(self, key: Key, decision: Decision) -> None:
        if decision.upgrading:
            self._upgrading.add(key)
        elif not decision.rolling:
            self._upgrading.discard(key)

    def _forget(self, key: Key) -> None:
        self._known.pop(key, None)
        self._upgrading.discard(key)
        self._poster.forget(key)


def _names(child: Obj) -> dict[str, str]:
    return {"kind": child["kind"], "object": child["metadata"]["name"]}


def _seen(child: Obj, live: Obj) -> tuple[str, str]:
    return annotation_of(child, names.APPLIED) or "", version_of(live)


def _mark(child: Obj, live: Obj) -> tuple[str, str, int]:
    generation = int(live["metadata"].get("generation", 0))
    if not generation:  # kinds without one: the version tells
        version = version_of(live)
        generation = int(version) if version.isdigit() else 0
    return uid_of(live), annotation_of(child, names.APPLIED) or "", generation


def _is_ours(there: Obj, child: Obj) -> bool:
    owner = controller_of(there)
    return owner is not None and owner.get("uid") == child["metadata"]["ownerReferences"][0]["uid"]
