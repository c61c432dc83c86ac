"""Events: deterministic names, counted instead of repeated, and never too many."""

import hashlib
import logging
from collections.abc import Callable, Iterable

from sloserve_operator.api import (
    API_VERSION,
    EVENT,
    FIELD_MANAGER,
    SERVICE_KIND,
    Key,
    Obj,
    key_of,
    uid_of,
)
from sloserve_operator.cluster import ApiError, Cluster
from sloserve_operator.notices import Notice
from sloserve_operator.observed import Now

log = logging.getLogger(__name__)

APART_S = 5.0
"""Between two Events of one service with one reason; gateways, which tell most news, are asked
half as often."""
MAX_MESSAGE = 1024


class Poster:
    """Posts Events about services. One that can't be posted is logged and forgotten."""

    def __init__(self, cluster: Cluster, *, wrote: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._wrote = wrote
        self._last_s: dict[tuple[Key, str], float] = {}
        self._counts: dict[str, int] = {}

    async def post(self, service: Obj, notices: Iterable[Notice], now: Now) -> None:
        """Tell these about `service`."""
        key = key_of(service)
        for notice in notices:
            level = logging.WARNING if notice.kind == "Warning" else logging.INFO
            log.log(level, notice.message, extra={"reason": notice.reason})
            last_s = self._last_s.get((key, notice.reason))
            if last_s is not None and now.mono_s - last_s < APART_S:
                continue
            self._last_s[key, notice.reason] = now.mono_s
            try:
                await self._write(service, notice, now)
                self._wrote("event")
            except ApiError as error:
                log.warning("no Event", extra={"reason": notice.reason, "error": error.message})

    async def _write(self, service: Obj, notice: Notice, now: Now) -> None:
        event = event_of(service, notice, now)
        meta = event["metadata"]
        try:
            await self._cluster.create(EVENT, event)
            self._counts[meta["name"]] = 1
        except ApiError as error:
            if error.status != 409:
                raise
            count = self._counts[meta["name"]] = self._counts.get(meta["name"], 1) + 1
            change = {"count": count, "lastTimestamp": now.text}
            await self._cluster.merge(EVENT, meta["namespace"], meta["name"], change)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        for told in [told for told in self._last_s if told[0] == key]:
            del self._last_s[told]
        for name in [name for name in self._counts if name.rpartition(".")[0] == key.name]:
            del self._counts[name]


def event_of(service: Obj, notice: Notice, now: Now) -> Obj:
    """The Event; the same notice about the same service has the same name."""
    meta = service["metadata"]
    message = notice.message[:MAX_MESSAGE]
    mark = hashlib.sha256(f"{uid_of(service)}/{notice.reason}/{message}".encode()).hexdigest()[:16]
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{meta['name']}.{mark}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": SERVICE_KIND,
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": uid_of(service),
        },
        "type": notice.kind,
        "reason": notice.reason,
        "message": message,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
        "firstTimestamp": now.text,
        "lastTimestamp": now.text,
        "count": 1,
    }
