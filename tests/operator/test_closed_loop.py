"""Autoscaling in a closed loop: replicas that serve so much, and take a minute to load."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from sloserve.slo.cluster import AutoscalingSpec
from sloserve.wire import Demand
from sloserve_operator.autoscale import Calm, Scaling, scale
from sloserve_operator.reports import ClassReport, Fleet, GatewayReport, ReplicaReport

SPEC = AutoscalingSpec(max_replicas=32, target_attainment=0.95, scale_down_delay_s=120.0)
PER_REPLICA = 10.0
"""Requests per second that one replica can promise."""
TOKENS = 100
LOAD_S, LOOK_S = 60.0, 10.0


class Service:
    """Requests of one kind; what replicas can't promise they decline."""

    def __init__(self, spec: AutoscalingSpec = SPEC) -> None:
        self.spec = spec
        self.born_s: list[float] = [-LOAD_S] * max(1, spec.min_replicas)
        self.now_s = 0.0
        self.calm: Calm | None = None
        self.counts: list[int] = []

    @property
    def num_ready(self) -> int:
        return sum(self.now_s - born_s >= LOAD_S for born_s in self.born_s)

    def run(self, rate: float, *, for_s: float) -> "Service":
        """`rate` requests per second for a while, looked at every 10 s."""
        for _ in range(int(for_s / LOOK_S)):
            told = self._look(rate)
            self.calm = told.calm
            count = told.replicas
            self.born_s = sorted(self.born_s)[:count]
            self.born_s += [self.now_s] * (count - len(self.born_s))
            self.counts.append(count)
            self.now_s += LOOK_S
        return self

    def _look(self, rate: float) -> Scaling:
        ready = self.num_ready
        served = min(rate, ready * PER_REPLICA)
        arrived = round(rate * 60)
        declined = round((rate - served) * 60)
        demand = Demand(
            num_arrived=arrived, prompt_tokens=arrived * TOKENS, num_answered=arrived - declined,
            num_declined=declined, reasons={"TPOT": declined} if declined else {},
        )  # fmt: skip
        spare = (ready * PER_REPLICA - served) * TOKENS / max(1, ready)
        replicas = tuple(
            ReplicaReport(f"r{n}:1", "ready", token_supply_per_s=spare) for n in range(ready)
        )
        slo_class = ClassReport("chat", last_minute=demand)
        report = GatewayReport("s", 1, False, 0, 0, {"chat": slo_class}, replicas)
        return scale(
            self.spec, Fleet((report,)), current=len(self.born_s), classes=["chat"],
            infeasible=frozenset(), calm=self.calm, now_s=self.now_s,
        )  # fmt: skip


@pytest.mark.parametrize("rate", [5.0, 25.0, 60.0, 133.0, 240.0])
def test_a_steady_load_comes_to_a_steady_count_that_keeps_its_promises(rate: float) -> None:
    service = Service().run(rate, for_s=1800)
    settled = service.counts[-60:]  # the last ten minutes
    assert len(set(settled)) == 1
    needed = math.ceil(rate * SPEC.target_attainment / PER_REPLICA)
    assert needed <= settled[0] <= math.ceil(rate / PER_REPLICA / 0.7)


def test_a_burst_is_followed_up_at_once_and_down_after_the_delay_only() -> None:
    service = Service().run(8.0, for_s=300)
    assert service.counts[-1] <= 2
    service.run(100.0, for_s=600)
    assert service.counts[-1] >= 10
    peak = service.counts[-1]
    quiet = len(service.counts)
    service.run(8.0, for_s=600)
    after = service.counts[quiet:]
    assert after[: int(SPEC.scale_down_delay_s / LOOK_S)] == [peak] * 12
    assert after[-1] <= 2
    assert after == sorted(after, reverse=True)  # never up again on the way down


def test_the_way_up_doubles_at_most_at_a_time() -> None:
    service = Service().run(240.0, for_s=1200)
    grown = [b / a for a, b in pairwise(service.counts) if b > a]
    assert max(grown) <= 2.0
    assert service.counts.index(max(service.counts)) * LOOK_S <= 600


def test_it_stays_between_its_bounds_whatever_comes() -> None:
    spec = replace(SPEC, min_replicas=2, max_replicas=4)
    service = Service(spec).run(500.0, for_s=600).run(0.0, for_s=600)
    assert set(service.counts) <= {2, 3, 4}
    assert (max(service.counts), service.counts[-1]) == (4, 2)
