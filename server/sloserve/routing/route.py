"""
Filter, score, pick (the design of the gateway, section 4).

    fresh and ready, frontier holds the prompt   -> the cheapest; it may decline, then the next
    nobody, and slack is left                    -> pend, ask again at the next report
    nobody, and no slack (or waiting can't help) -> the cheapest, on the last hop: it decides
    reports all stale                            -> unknown: least in flight
    one replica alone                            -> there, on the last hop: its planner should see
                                                    every request that waits, and nobody else can
                                                    take it anyway
"""

from collections.abc import Sequence

from sloserve.errors import Reason
from sloserve.routing.score import cost_s, fits
from sloserve.routing.state import RoutingState
from sloserve.routing.types import Ask, Choice, Replica, nobody_ready


def route(ask: Ask, replicas: Sequence[Replica], state: RoutingState) -> Choice:
    """Where the request goes now. O(replicas); looks and changes nothing."""
    ready = [r for r in replicas if r.ready]
    if not ready:
        return nobody_ready(replicas)
    fresh = [r for r in ready if r.fresh]
    pool = fresh or ready
    left = [r for r in pool if r.name not in ask.exclude]
    last_hop = ask.hops + 1 >= ask.max_hops
    if len(pool) == 1 or not fresh:
        if not left:
            return _wait(ask, pool)
        chosen = min(left, key=lambda r: (r.num_inflight, r.name))
        return Choice(chosen.name, last_hop=last_hop or len(left) == 1)
    fitting = [r for r in left if fits(ask, r)]
    if fitting:
        return Choice(_cheapest(ask, fitting, state), last_hop=last_hop)
    if not _hopeless(ask, left):
        waiting = _wait(ask, pool)
        if waiting.pend_s > 0.0:
            return waiting
    return Choice(_cheapest(ask, left or pool, state), last_hop=True)


def _wait(ask: Ask, pool: Sequence[Replica]) -> Choice:
    slack_s = max(ask.slack_s(r.report) for r in pool if r.report is not None)
    return Choice(pend_s=max(0.0, slack_s), reason=Reason.REPLICAS)


def _hopeless(ask: Ask, left: Sequence[Replica]) -> bool:
    """Waiting can't help: an idle replica can't either, or the prompt is too long anywhere."""
    if ask.max_prompt_tokens is not None and ask.num_prompt_tokens >= ask.max_prompt_tokens:
        return True
    return any(r.idle for r in left)


def _cheapest(ask: Ask, candidates: Sequence[Replica], state: RoutingState) -> str:
    if len(candidates) == 1:
        return candidates[0].name
    seen = state.affinity.recall(ask.session, ask.prefixes)
    expected_output = state.expected_output(ask.slo_class)
    spread = state.overloaded

    def key(r: Replica) -> tuple[float, int, str]:
        saved = seen[1] if seen is not None and seen[0] == r.name else 0
        cost = cost_s(ask, r, expected_output=expected_output, saved_tokens=saved, spread=spread)
        return cost, r.num_inflight, r.name

    return min(candidates, key=key).name
