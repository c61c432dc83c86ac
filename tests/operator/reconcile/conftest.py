"""An operator over the fake cluster, whose events are delivered when the test says so."""

from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, POD, SERVICE, Key, Kind, Obj
from sloserve_operator.cache import Cache
from sloserve_operator.conditions import Type, find
from sloserve_operator.figures import Figures
from sloserve_operator.observed import Now
from sloserve_operator.posting import Poster
from sloserve_operator.reconciler import Reconciler
from sloserve_operator.reports import GatewayReport, parse_report
from sloserve_operator.settings import OperatorSettings

Fake = Any
Make = Callable[..., Obj]
CHAT = Key("team", "chat")


class World:
    """An operator over a fake cluster, whose events are delivered when the test says so."""

    def __init__(self, cluster: Fake, moment: Callable[[float], Now]) -> None:
        self.cluster = cluster
        self.time_s = 0.0
        self._moment = moment
        self.events: list[tuple[Kind, str | None, Obj]] = []
        self.reports: dict[str, GatewayReport] = {}
        cluster.watchers.append(lambda *event: self.events.append(event))
        cluster.known.clear()
        self.settings = OperatorSettings()
        self.restart()

    def restart(self) -> None:
        """A new process: nothing is remembered, nothing heard."""
        self.cache = Cache()
        self.dirty: dict[Key, None] = {}
        self.figures = Figures()
        self.operator = Reconciler(
            self.cluster,
            self.cache,
            settings=self.settings,
            reports=lambda pods: {
                p["metadata"]["uid"]: self.reports[p["metadata"]["uid"]]
                for p in pods
                if p["metadata"]["uid"] in self.reports
            },
            poster=Poster(self.cluster, wrote=lambda verb: None),
            figures=self.figures,
            clock=lambda: self._moment(self.time_s),
        )

    def hear(self, number: int = 0) -> None:
        """Deliver one event."""
        _, change, obj = self.events.pop(number)
        key = self.cache.drop(obj) if change == "DELETED" else self.cache.put(obj)
        if key is not None:
            self.dirty[key] = None

    async def resync(self) -> None:
        """Look at everything, as the operator does every few minutes."""
        for kind in (SERVICE, *CHILD_KINDS.values(), POD):
            if kind.optional and kind.kind not in self.cluster.known:
                continue
            labels = "" if kind is SERVICE else names.OURS
            listed = await self.cluster.list_all(kind, None, labels=labels)
            self.cache.replace(kind.kind, listed.items, version=listed.version)
        self.dirty |= dict.fromkeys(self.cache.known())

    async def look(self, key: Key = CHAT) -> float | None:
        self.dirty.pop(key, None)
        return await self.operator.reconcile(key)

    async def settle(self, *, roll_out: bool = True) -> None:
        """Everything heard, everything done, until nothing happens any more."""
        for _ in range(50):
            while self.events:
                self.hear()
            if roll_out:
                self.cluster.roll_out()
            for key in list(self.dirty):
                await self.look(key)
            if not self.events and not self.dirty:
                return
        raise AssertionError("it does not come to rest")

    def hear_gateways(self, make: Callable[..., Obj], **fields: Any) -> None:
        """Every gateway reports this."""
        for pod in self.cluster.all("Pod"):
            if pod["metadata"]["labels"][names.COMPONENT] == names.GATEWAY:
                self.reports[pod["metadata"]["uid"]] = parse_report(make(**fields))
        self.dirty[CHAT] = None

    @property
    def status(self) -> Obj:
        return dict(self.cluster.one("SLOService", "chat").get("status") or {})

    def condition(self, kind: Type) -> tuple[str, str]:
        told = find(self.status, kind)
        return told["status"], told["reason"]


@pytest.fixture
def world(cluster: Fake, moment: Callable[[float], Now]) -> World:
    return World(cluster, moment)
