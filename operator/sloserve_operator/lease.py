"""
One operator at a time, by a Lease of our own.

Whoever holds it renews it every 5 s and writes only while the last renewal is younger than 10 s.
Another holder is dead when *this* process has seen nothing new of the Lease for its 15 s: clocks
of two machines are never compared. A holder that lost it ends at once, without cleaning up.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sloserve.errors import SloserveError
from sloserve_operator.api import LEASE, Obj, version_of
from sloserve_operator.cluster import ApiError, Cluster

log = logging.getLogger(__name__)

DURATION_S = 15
RENEW_S = 5.0
VALID_S = 10.0
STANDBY_S = 1.0
"""Between two looks of a standby: a Lease that was released is taken within a second."""
REQUEST_S = 4.0


class Lease:
    """A claim to be the one that acts. `cluster` must write without asking this Lease."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._namespace, self._name, self.identity = namespace, name, identity
        self._clock = clock
        self._held: Obj | None = None
        self._renewed_s = float("-inf")
        self._seen = ""
        self._seen_s = clock()
        self.leading = asyncio.Event()
        """Set from the first time this process holds it."""

    def valid(self) -> bool:
        """Whether this process may write."""
        return self._held is not None and self._clock() - self._renewed_s < VALID_S

    async def keep(self, lost: Callable[[], None]) -> None:
        """Acquire, then renew, until cancelled. `lost` is called when it could not be kept."""
        while True:
            start_s = self._clock()
            try:
                async with asyncio.timeout(REQUEST_S):
                    if await self._acquire_or_renew():
                        self._renewed_s = start_s  # before the request: never too late
                        self.leading.set()
            except (SloserveError, TimeoutError) as error:
                log.warning("the Lease could not be renewed", extra={"error": _problem(error)})
            if self.leading.is_set() and not self.valid():
                log.critical("the Lease is lost", extra={"identity": self.identity})
                lost()
                return
            standby_s = STANDBY_S * random.uniform(0.8, 1.0)
            await asyncio.sleep(RENEW_S if self.valid() else standby_s)

    async def release(self) -> None:
        """Give it up, so that a standby need not wait."""
        if self._held is None or not self.valid():
            return
        self._held = None
        try:
            async with asyncio.timeout(REQUEST_S):
                found = await self._cluster.get(LEASE, self._namespace, self._name)
                if found is not None and found["spec"].get("holderIdentity") == self.identity:
                    empty = {"holderIdentity": "", "leaseDurationSeconds": 1}
                    given_up = {**found, "spec": {**found["spec"], **empty}}
                    await self._cluster.replace(LEASE, given_up)
        except (SloserveError, TimeoutError) as error:
            log.warning("the Lease could not be released", extra={"error": _problem(error)})

    async def _acquire_or_renew(self) -> bool:
        if self._held is not None:
            try:
                self._held = await self._cluster.replace(LEASE, self._filled(self._held, new=False))
                return True
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
                self._held = None  # somebody wrote it: look who
        found = await self._cluster.get(LEASE, self._namespace, self._name)
        if found is None:
            empty = {
                "apiVersion": LEASE.api_version,
                "kind": LEASE.kind,
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": {},
            }
            self._held = await self._cluster.create(LEASE, self._filled(empty, new=True))
            return True
        if version_of(found) != self._seen:
            self._seen, self._seen_s = version_of(found), self._clock()
        spec = found.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        duration_s = float(spec.get("leaseDurationSeconds") or DURATION_S)
        alive = self._clock() - self._seen_s < duration_s
        if holder not in ("", self.identity) and alive:
            return False
        new = holder != self.identity
        self._held = await self._cluster.replace(LEASE, self._filled(found, new=new))
        log.info("the Lease is ours", extra={"identity": self.identity})
        return True

    def _filled(self, lease: Obj, *, new: bool) -> Obj:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = lease.get("spec") or {}
        spec = {
            **before,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION_S,
            "renewTime": now,
        }
        if new:
            spec |= {
                "acquireTime": now,
                "leaseTransitions": int(before.get("leaseTransitions") or 0) + 1,
            }
        return {**lease, "spec": spec}


def _problem(error: BaseException) -> str:
    return str(error) or "timed out"
