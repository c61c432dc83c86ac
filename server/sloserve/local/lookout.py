"""Asks a running service how it is: the gateway's overview and counters, the replicas' steps."""

import asyncio
import contextlib

import aiohttp

from sloserve.errors import Failed
from sloserve.local.counts import PATH, SLOT_S, parse_counts
from sloserve.local.overview import Overview, fetch, parse_overview, with_names
from sloserve.local.risk import find, follow
from sloserve.local.scene import Scene
from sloserve.local.steps import NUM_STEPS, StepLog

WATCHED_S = 5.0
"""Somebody looks at the page if it was asked for less than this ago."""
WATCHED_PERIOD_S = 0.9
PATIENCE = aiohttp.ClientTimeout(total=1.0)


class Lookout:
    """
    Keeps a scene up to date. While nobody looks at the page it asks for little, and seldom:
    the counters and how replicas are every 5 s, no steps.
    """

    def __init__(self, session: aiohttp.ClientSession, scene: Scene, *, internal_url: str) -> None:
        self._session = session
        self._scene = scene
        self._internal_url = internal_url
        self._seen_s = float("-inf")
        self._counted_s = float("-inf")

    def seen(self, now_s: float) -> None:
        """Somebody looks at the page."""
        self._seen_s = now_s

    async def look(self, now_s: float) -> Overview | None:
        """Renew the scene; its overview, None when the gateway does not answer."""
        scene = self._scene
        try:
            raw = await fetch(self._session, f"{self._internal_url}/report")
            overview = with_names(parse_overview(raw), scene.names, starting=scene.starting)
        except Failed:
            overview = None
        scene.overview, scene.latest = overview, overview or scene.latest
        scene.was_ready = scene.was_ready or (overview is not None and overview.num_ready > 0)
        watched = now_s - self._seen_s <= WATCHED_S
        if overview is not None and now_s - self._counted_s >= (
            WATCHED_PERIOD_S if watched else SLOT_S
        ):
            self._counted_s = now_s
            await self._count(now_s)
            await self._read_steps(overview, last=NUM_STEPS if watched else 0)
        found = find(
            overview,
            was_ready=scene.was_ready and not scene.draining,
            history=scene.history,
            steps=scene.steps,
        )
        scene.troubles = follow(scene.troubles, found, now_s=now_s)
        return overview

    async def _count(self, now_s: float) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with self._session.get(self._internal_url + PATH, timeout=PATIENCE) as response:
                if response.status == 200:
                    self._scene.history.add(parse_counts(await response.text()), now_s)

    async def _read_steps(self, overview: Overview, *, last: int) -> None:
        logs = self._scene.steps
        addresses = {row.address for row in overview.replicas}
        for address in logs.keys() - addresses:
            del logs[address]
        able = [row.address for row in overview.replicas if row.state in ("ready", "draining")]
        await asyncio.gather(
            *(self._read(a, logs.setdefault(a, StepLog()), last=last) for a in able)
        )

    async def _read(self, address: str, log: StepLog, *, last: int) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            url = f"http://{address}{log.path(last=last)}"
            async with self._session.get(url, timeout=PATIENCE) as response:
                log.hear(await response.json(content_type=None))
