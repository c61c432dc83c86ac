"""
Filter, score, pick (the design of the gateway, section 4).

    fresh, ready, and its frontier holds the prompt  -> a candidate; declined there, the next one
    it does not, it is busy, waiting there may do    -> a candidate on the last hop, dearer: its
                                                        planner should see who waits
    else, where only too many run beside it, and     -> pend here, ask again at the next report
    slack is left; or everybody just declined it
    else                                             -> the cheapest on the last hop: it decides
    reports all stale                                -> unknown: least in flight
    one replica alone                                -> there, on the last hop

A frontier is a moment: between two chunks of a prefill it may be empty. Waiting here for the next
one keeps promises worse than waiting in the queue of a replica, whose planner then knows of it.
"""

from collections.abc import Sequence

from sloserve.errors import Reason
from sloserve.routing.score import cost_s, crowded, fits, may_wait
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
    waiting = [r for r in left if r not in fitting and may_wait(ask, r)]
    able = [r for r in waiting if not r.idle and not crowded(ask, r)]
    if fitting or able:
        chosen = _cheapest(ask, fitting, able, state)
        return Choice(chosen.name, last_hop=last_hop or chosen not in fitting)
    if not left or (waiting and not any(r.idle for r in waiting)):
        wait = _wait(ask, pool)
        if wait.pend_s > 0.0:
            return wait
    return Choice(_cheapest(ask, (), left or pool, state).name, last_hop=True)


def _wait(ask: Ask, pool: Sequence[Replica]) -> Choice:
    slack_s = max(ask.slack_s(r.report) for r in pool if r.report is not None)
    return Choice(pend_s=max(0.0, slack_s), reason=Reason.REPLICAS)


def _cheapest(
    ask: Ask, fitting: Sequence[Replica], others: Sequence[Replica], state: RoutingState
) -> Replica:
    if len(fitting) + len(others) == 1:
        return (*fitting, *others)[0]
    seen = state.affinity.recall(ask.session, ask.prefixes)
    expected_output = state.expected_output(ask.slo_class)
    spread = state.overloaded

    def key(r: Replica) -> tuple[float, bool, int, str]:
        cost = cost_s(
            ask,
            r,
            fits=r in fitting,
            expected_output=expected_output,
            saved_tokens=seen[1] if seen is not None and seen[0] == r.name else 0,
            spread=spread,
        )
        return cost, r not in fitting, r.num_inflight, r.name

    return min((*fitting, *others), key=key)
