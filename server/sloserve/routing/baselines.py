"""Routers that know no promises, for comparison."""

from collections.abc import Sequence

from sloserve.errors import BadInput
from sloserve.routing.route import route
from sloserve.routing.state import RoutingState
from sloserve.routing.types import Ask, Choice, Replica, Router, nobody_ready

ROUTERS = ("sloserve", "round-robin", "least-loaded")


class RoundRobin:
    """One after the other; whoever is asked decides."""

    def __init__(self) -> None:
        self._turn = 0

    def __call__(self, ask: Ask, replicas: Sequence[Replica], state: RoutingState) -> Choice:
        """The next ready replica in turn."""
        ready = _usable(ask, replicas)
        if not ready:
            return nobody_ready(replicas)
        self._turn += 1
        return Choice(ready[self._turn % len(ready)].name, last_hop=True)


class LeastLoaded:
    """The fewest requests running and waiting; whoever is asked decides."""

    def __call__(self, ask: Ask, replicas: Sequence[Replica], state: RoutingState) -> Choice:
        """The ready replica with the least to do."""
        ready = _usable(ask, replicas)
        if not ready:
            return nobody_ready(replicas)
        return Choice(min(ready, key=_load).name, last_hop=True)


def _usable(ask: Ask, replicas: Sequence[Replica]) -> list[Replica]:
    return [r for r in replicas if r.ready and r.name not in ask.exclude]


def _load(replica: Replica) -> tuple[int, str]:
    report = replica.report
    reported = report.num_running + report.num_waiting if report is not None else 0
    return max(reported, replica.num_inflight), replica.name


def make_router(name: str) -> Router:
    """The router of that name, fresh. Raises BadInput with the known names."""
    if name == "sloserve":
        return route
    if name == "round-robin":
        return RoundRobin()
    if name == "least-loaded":
        return LeastLoaded()
    raise BadInput(f"{name!r} is not a router; known: {', '.join(ROUTERS)}", field="router")
