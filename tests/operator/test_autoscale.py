"""How many replicas are wanted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.slo.cluster import AutoscalingSpec
from sloserve.wire import Demand
from sloserve_operator.api import Obj
from sloserve_operator.autoscale import Calm, Scaling, binding, load_of, scale, tokens_per_s
from sloserve_operator.reports import Fleet, ReplicaReport, parse_report

SPEC = AutoscalingSpec(max_replicas=8, target_attainment=0.9, scale_down_delay_s=300.0)
Scaled = Callable[..., Scaling]


def a_replica(number: int, **fields: Any) -> ReplicaReport:
    plain = ReplicaReport(
        f"10.0.0.{number}:8000", "ready", token_supply_per_s=1000.0, free_blocks=100,
        total_blocks=100,
    )  # fmt: skip
    return replace(plain, **fields)


@pytest.fixture
def scaled(report: Callable[..., Obj]) -> Scaled:
    """`scaled(current=2, arrived=100, declined=30)`: one look at a service of one class."""

    def look(
        *,
        current: int = 2,
        ready: int | None = None,
        spec: AutoscalingSpec = SPEC,
        calm: Calm | None = None,
        now_s: float = 0.0,
        infeasible: frozenset[str] = frozenset(),
        pending: int = 0,
        replica: dict[str, Any] | None = None,
        **demand: Any,
    ) -> Scaling:
        plain = parse_report(report(demand={"fast": demand}, pending=pending))
        count = current if ready is None else ready
        replicas = tuple(a_replica(n, **(replica or {})) for n in range(count))
        fleet = Fleet((replace(plain, replicas=replicas),))
        return scale(
            spec, fleet, current=current, classes=["fast"], infeasible=infeasible, calm=calm,
            now_s=now_s,
        )  # fmt: skip

    return look


def test_broken_promises_ask_for_more_at_once(scaled: Scaled) -> None:
    # 40 of 100 could not be promised: two replicas carry 60; 90 of 100 need 2 * 0.9 / 0.6 = 3
    told = scaled(arrived=100, declined=30, degraded=10, reasons={"TPOT": 35, "KV": 5})
    assert told.replicas == 3
    assert "40%" in told.why
    assert told.constraint == "TPOT"


def test_what_stays_within_the_budget_changes_nothing(scaled: Scaled) -> None:
    assert scaled(arrived=100, declined=9, replica={"token_supply_per_s": 0.0,
                                                    "free_blocks": 30}).replicas == 2  # fmt: skip


def test_one_look_at_most_doubles_what_serves(scaled: Scaled) -> None:
    assert scaled(current=2, arrived=100, declined=95).replicas == 4
    assert scaled(current=1, arrived=100, declined=100).replicas == 2


def test_replicas_that_still_load_are_not_asked_for_twice(scaled: Scaled) -> None:
    assert scaled(current=4, ready=2, arrived=100, declined=40).replicas == 4


def test_the_maximum_holds_and_says_what_would_be_wanted(scaled: Scaled) -> None:
    spec = replace(SPEC, max_replicas=2)
    told = scaled(spec=spec, arrived=100, declined=40)
    assert (told.replicas, told.unbounded) == (2, 3)


def test_a_class_that_no_idle_replica_can_serve_asks_for_nothing(scaled: Scaled) -> None:
    told = scaled(arrived=100, declined=100, infeasible=frozenset({"fast"}),
                  replica={"free_blocks": 30})  # fmt: skip
    assert told.replicas == 2


def test_full_caches_ask_for_more_before_promises_break(scaled: Scaled) -> None:
    told = scaled(arrived=100, replica={"free_blocks": 5})
    assert told.replicas == 3
    assert "95%" in told.why


def test_a_handful_of_requests_says_nothing(scaled: Scaled) -> None:
    assert scaled(arrived=5, declined=5, replica={"free_blocks": 30}).replicas == 2


def test_fewer_replicas_must_have_sufficed_for_the_delay(scaled: Scaled) -> None:
    light: dict[str, Any] = {"current": 4, "arrived": 60, "replica": {"free_blocks": 70}}
    first = scaled(**light, now_s=0.0)  # 4 * 0.3 / 0.7 = 1.7: two would do
    assert (first.replicas, first.calm) == (4, Calm(0.0, 2))
    later = scaled(**light, calm=first.calm, now_s=299.0)
    assert (later.replicas, later.calm) == (4, Calm(0.0, 2))
    assert scaled(**light, calm=later.calm, now_s=300.0).replicas == 2


def test_the_busiest_moment_of_the_delay_decides(scaled: Scaled) -> None:
    light = {"free_blocks": 70}
    busier = scaled(current=4, arrived=60, replica={"free_blocks": 50}, calm=Calm(0.0, 2),
                    now_s=100.0)  # fmt: skip
    assert busier.calm == Calm(0.0, 3)
    done = scaled(current=4, arrived=60, replica=light, calm=busier.calm, now_s=300.0)
    assert done.replicas == 3
    assert scaled(current=4, arrived=60, replica={"free_blocks": 10}, calm=Calm(0.0, 2),
                  now_s=200.0).calm is None  # fmt: skip


def test_from_zero_when_a_request_is_held_and_back_when_none_comes(scaled: Scaled) -> None:
    sleepy = replace(SPEC, min_replicas=0)
    assert scaled(spec=sleepy, current=0).replicas == 0
    assert scaled(spec=sleepy, current=0, pending=1).replicas == 1
    resting = scaled(spec=sleepy, current=1, now_s=0.0)
    assert (resting.replicas, resting.calm) == (1, Calm(0.0, 0))
    assert scaled(spec=sleepy, current=1, calm=resting.calm, now_s=301.0).replicas == 0
    busy = scaled(spec=sleepy, current=1, calm=resting.calm, now_s=301.0, pending=1, arrived=1)
    assert busy.replicas == 1


def test_a_blind_operator_changes_nothing_but_the_bounds() -> None:
    def blind(current: int) -> int:
        return scale(
            replace(SPEC, min_replicas=2), Fleet(()), current=current, classes=["fast"],
            infeasible=frozenset(), calm=None, now_s=0.0,
        ).replicas  # fmt: skip

    assert [blind(n) for n in (1, 3, 9)] == [2, 3, 8]


def test_tokens_that_were_refused_count_as_offered() -> None:
    demand = Demand(num_arrived=60, prompt_tokens=6000, num_answered=30, output_tokens=1500,
                    num_declined=30)  # fmt: skip
    assert tokens_per_s([demand]) == (150.0, 75.0)
    assert load_of([a_replica(1, token_supply_per_s=25.0)], [demand]) == 1.5


def test_the_binding_constraint_is_what_most_failed_on() -> None:
    assert binding([]) == "None"
    assert binding([Demand(reasons={"TTFT": 2, "KV": 1}), Demand(reasons={"KV": 3})]) == "KV"
    assert binding([Demand(reasons={"QueueFull": 2, "Loading": 1, "TTFT": 2})]) == "Replicas"
    assert binding([Demand(reasons={"RateLimit": 9})]) == "None"


@given(
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 100),
    st.integers(0, 3),
    st.integers(1, 10),
)
def test_whatever_is_reported_the_bounds_hold(
    current: int, ready: int, arrived: int, declined: int, free: int, least: int, more: int
) -> None:
    spec = replace(SPEC, min_replicas=least, max_replicas=least + more)
    replicas = tuple(a_replica(n, free_blocks=free) for n in range(min(ready, current)))
    demand = Demand(num_arrived=arrived, num_declined=min(declined, arrived))
    report = parse_report(
        {"service": "chat", "generation": 1, "draining": False, "inflight": 0, "pending": 0,
         "classes": [], "replicas": []}
    )  # fmt: skip
    fleet = Fleet((replace(report, replicas=replicas),))
    told = scale(
        spec, fleet, current=current, classes=["fast"], infeasible=frozenset(), calm=None, now_s=0.0
    )
    assert spec.min_replicas <= told.replicas <= spec.max_replicas
    assert demand.num_declined <= demand.num_arrived
