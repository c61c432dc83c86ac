"""
Pick a replica: filter, score, pick. Pure; the gateway and the simulator share it.

`route(ask, replicas, state)` looks at values only; `RoutingState` is what a router remembers.
"""

from sloserve.routing.affinity import Affinity, prefix_keys
from sloserve.routing.baselines import ROUTERS, LeastLoaded, RoundRobin, make_router
from sloserve.routing.estimate import TokensPerCharacter
from sloserve.routing.route import route
from sloserve.routing.state import RoutingState
from sloserve.routing.types import FRESH_S, Ask, Choice, Replica, Router

__all__ = [
    "FRESH_S",
    "ROUTERS",
    "Affinity",
    "Ask",
    "Choice",
    "LeastLoaded",
    "Replica",
    "RoundRobin",
    "Router",
    "RoutingState",
    "TokensPerCharacter",
    "make_router",
    "prefix_keys",
    "route",
]
