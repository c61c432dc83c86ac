"""What a class asked for in the last minute."""

import pytest

from sloserve.errors import Reason
from sloserve.gateway.demand import RecentDemand
from sloserve.wire import Demand, demand_from_json, demand_to_json


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_minute_is_remembered_and_no_more() -> None:
    clock = Clock()
    demand = RecentDemand(clock)
    demand.arrived(100)
    demand.ended(decision="admitted", outcome="finished", reason=Reason.NONE, num_output=20)
    clock.now_s += 30
    demand.arrived(50)
    told = demand.last_minute()
    assert (told.num_arrived, told.prompt_tokens) == (2, 150)
    assert (told.num_answered, told.output_tokens) == (1, 20)
    clock.now_s += 40
    assert demand.last_minute().num_arrived == 1
    clock.now_s += 60
    assert demand.last_minute().num_arrived == 0


@pytest.mark.parametrize(
    ("decision", "outcome", "reason", "declined", "degraded"),
    [
        ("declined", "refused", Reason.TPOT, 1, 0),
        ("degraded", "finished", Reason.TTFT, 0, 1),
        ("none", "refused", Reason.REPLICAS, 1, 0),
        ("admitted", "finished", Reason.NONE, 0, 0),
        ("admitted", "cancelled", Reason.CLIENT_GONE, 0, 0),
        ("none", "refused", Reason.RATE_LIMIT, 0, 0),
        ("admitted", "failed", Reason.REPLICA_LOST, 0, 0),
    ],
)
def test_only_what_more_replicas_would_help_against_counts(
    decision: str, outcome: str, reason: Reason, declined: int, degraded: int
) -> None:
    demand = RecentDemand(Clock())
    demand.ended(decision=decision, outcome=outcome, reason=reason, num_output=0)
    told = demand.last_minute()
    assert (told.num_declined, told.num_degraded) == (declined, degraded)
    assert told.reasons == ({reason.value: 1} if declined or degraded else {})


def test_what_a_gateway_tells_is_what_the_operator_reads() -> None:
    demand = Demand(7, 700, 5, 50, 1, 2, {"TTFT": 2, "KV": 1})
    assert demand_from_json(demand_to_json(demand)) == demand
    assert demand_from_json({}) == Demand()
