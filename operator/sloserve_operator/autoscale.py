"""
How many replicas a service needs, by what its replicas say they can still compute.

    n        replicas that serve                u  share declined or degraded in the last minute
    b        1 - target attainment              supply = spare + used tokens/s, all replicas
    demand   tokens/s offered, refused requests included (at the mean answer of the served)
    load     = max(demand / supply, KV blocks used / all)

    by promises  n * (1 - b) / (1 - u)          when u > b: each replica keeps so many promises
    by load      n * load / 0.85                room for what one minute does not show
    up           at once, to the larger of both
    down         to n * load / 0.7 when u <= b / 2, after `scaleDownDelay` in which it sufficed
    from zero    1 when a request is held; to zero when none came for the delay

More replicas are never asked for because of classes that an idle replica can't serve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sloserve.slo.cluster import AutoscalingSpec
from sloserve.wire import Demand
from sloserve_operator.reports import Fleet, ReplicaReport

WINDOW_S = 60.0
MIN_REQUESTS = 10
"""Fewer requests in the window say nothing about shares."""
FULL, LOW = 0.85, 0.7
"""Load of a replica above which more are wanted, and that fewer may come to."""
MAX_FACTOR = 2.0
"""One look at most doubles the replicas that serve: the next minute tells more."""
CAPACITY_REASONS = ("TTFT", "TPOT", "KV", "Replicas", "QueueFull", "Loading")


@dataclass(frozen=True, slots=True)
class Calm:
    """Since when (monotonic seconds) so many replicas have sufficed, at most."""

    since_s: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Scaling:
    """What came of one look."""

    replicas: int
    """Wanted within the bounds."""
    unbounded: int
    """Wanted if there were no maximum."""
    why: str
    """In words, for the Event."""
    calm: Calm | None
    constraint: str
    """What most promises failed on: TTFT, TPOT, KV, Replicas or None."""


def scale(
    spec: AutoscalingSpec,
    fleet: Fleet,
    *,
    current: int,
    classes: Sequence[str],
    infeasible: frozenset[str],
    calm: Calm | None,
    now_s: float,
) -> Scaling:
    """
    The next count of replicas. Pure: `calm` is what the last look returned, on the clock `now_s`.

    Without any report the count stays: a blind operator changes nothing.
    """
    demands = {name: fleet.last_minute(name) for name in classes if name not in infeasible}
    constraint = binding(list(demands.values()))
    bounded = min(max(current, spec.min_replicas), spec.max_replicas)
    if not fleet.reports:
        return Scaling(bounded, bounded, "no gateway reports", calm, constraint)
    arrived = sum(d.num_arrived for d in demands.values()) + fleet.num_pending
    if current == 0:
        waiting = fleet.num_pending + arrived
        wanted = max(spec.min_replicas, 1 if waiting else 0)
        why = f"{waiting} requests wait" if waiting else "no request"
        return Scaling(min(wanted, spec.max_replicas), wanted, why, None, constraint)
    up, why = _up(spec, fleet, demands, current=current)
    if up > current:
        return Scaling(
            min(max(up, spec.min_replicas), spec.max_replicas), up, why, None, constraint
        )
    down = _down(spec, fleet, demands, current=current, idle=not arrived and not fleet.num_inflight)
    if down >= current:
        return Scaling(bounded, max(up, bounded), "the load fits", None, constraint)
    most = down if calm is None else max(down, calm.replicas)
    since_s = now_s if calm is None else calm.since_s
    if calm is not None and down < calm.replicas:  # fewer would do: that has to prove itself anew
        most = calm.replicas
    if now_s - since_s < spec.scale_down_delay_s:
        keep = Calm(since_s, max(most, down))
        return Scaling(bounded, bounded, "fewer replicas may do soon", keep, constraint)
    wanted = min(max(most, spec.min_replicas), spec.max_replicas)
    why = f"{wanted} replicas have sufficed for {spec.scale_down_delay_s:g} s"
    return Scaling(min(wanted, bounded), wanted, why, None, constraint)


def _up(
    spec: AutoscalingSpec, fleet: Fleet, demands: Mapping[str, Demand], *, current: int
) -> tuple[int, str]:
    ready = fleet.ready()
    if not ready:
        return current, "no replica serves yet"
    budget = 1.0 - spec.target_attainment
    num, missed_share = len(ready), infeasible_share(list(demands.values()))
    by_promises = num
    if missed_share > budget:
        by_promises = math.ceil(num * (1.0 - budget) / max(1.0 - missed_share, 1e-9) - 1e-9)
    load = load_of(ready, list(demands.values()))
    by_load = math.ceil(num * load / FULL - 1e-9)
    most = max(num + 1, math.floor(num * MAX_FACTOR))
    if max(by_promises, by_load) <= current:
        return current, "the load fits"
    if by_promises >= by_load:
        why = f"{missed_share:.0%} of the requests could not be promised"
    else:
        why = f"the load is {load:.0%} of what {num} replicas can compute"
    return min(max(by_promises, by_load), most), why


def _down(
    spec: AutoscalingSpec,
    fleet: Fleet,
    demands: Mapping[str, Demand],
    *,
    current: int,
    idle: bool,
) -> int:
    """The fewest replicas that would do; `current` when fewer would not, or nobody can tell."""
    if idle:
        return spec.min_replicas
    ready = fleet.ready()
    budget = 1.0 - spec.target_attainment
    if len(ready) < current or infeasible_share(list(demands.values())) > budget / 2:
        return current
    load = load_of(ready, list(demands.values()))
    return max(1, spec.min_replicas, math.ceil(len(ready) * load / LOW - 1e-9))


def infeasible_share(demands: Sequence[Demand]) -> float:
    """Share (0..1) of the requests that were declined or degraded; 0 when too few came."""
    arrived = sum(d.num_arrived for d in demands)
    missed = sum(d.num_declined + d.num_degraded for d in demands)
    if max(arrived, missed) < MIN_REQUESTS:
        return 0.0
    return min(1.0, missed / max(arrived, missed))


def load_of(ready: Sequence[ReplicaReport], demands: Sequence[Demand]) -> float:
    """Offered work over what the replicas can do: tokens or KV blocks, whichever is scarcer."""
    offered, served = tokens_per_s(demands)
    supply = sum(r.token_supply_per_s for r in ready) + served
    blocks = sum(r.total_blocks for r in ready)
    used = blocks - sum(r.free_blocks for r in ready)
    return max(offered / supply if supply > 0 else 0.0, used / blocks if blocks else 0.0)


def tokens_per_s(demands: Sequence[Demand]) -> tuple[float, float]:
    """(offered, served) tokens per second, prompt and output."""
    offered = served = 0.0
    for demand in demands:
        refused = min(demand.num_arrived, demand.num_declined)
        mean_output = demand.output_tokens / demand.num_answered if demand.num_answered else 0.0
        mean_prompt = demand.prompt_tokens / demand.num_arrived if demand.num_arrived else 0.0
        offered += demand.num_arrived * (mean_prompt + mean_output)
        served += (demand.num_arrived - refused) * (mean_prompt + mean_output)
    return offered / WINDOW_S, served / WINDOW_S


def binding(demands: Sequence[Demand]) -> str:
    """What most declined and degraded requests failed on; `None` (the word) when none did."""
    counts: dict[str, int] = {}
    for demand in demands:
        for reason, count in demand.reasons.items():
            if reason in CAPACITY_REASONS:
                name = reason if reason in ("TTFT", "TPOT", "KV") else "Replicas"
                counts[name] = counts.get(name, 0) + count
    return max(sorted(counts), key=lambda name: counts[name]) if any(counts.values()) else "None"
