"""Filter, score, pick."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.errors import BadInput, Reason
from sloserve.routing import (
    ROUTERS,
    Ask,
    Choice,
    LeastLoaded,
    Replica,
    RoundRobin,
    RoutingState,
    make_router,
    route,
)
from sloserve.slo import Ttft
from sloserve.wire import Frontier, Report

MakeReplica = Callable[..., Replica]
MakeAsk = Callable[..., Ask]


def test_only_a_replica_whose_frontier_holds_the_prompt_is_asked(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica("a", room=(1, 99)), a_replica("b"), a_replica("c", room=(101, 500))]
    assert route(an_ask(), replicas, RoutingState()) == Choice("b", last_hop=False)


def test_the_last_hop_is_said_and_no_other(a_replica: MakeReplica, an_ask: MakeAsk) -> None:
    replicas = [a_replica("a"), a_replica("b")]
    assert not route(an_ask(hops=0, max_hops=2), replicas, RoutingState()).last_hop
    assert route(an_ask(hops=1, max_hops=2), replicas, RoutingState()).last_hop


def test_a_replica_alone_gets_everything_at_once(a_replica: MakeReplica, an_ask: MakeAsk) -> None:
    alone = [a_replica("a", room=(1, 0), num_running=9)]
    assert route(an_ask(), alone, RoutingState()) == Choice("a", last_hop=True)


CROWD = 60
"""So many that no step beside them is shorter than 50 ms: w = 10 ms, 1 ms a token."""


def test_who_fits_nowhere_now_waits_where_its_planner_can_see_it(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    busy = [
        a_replica("a", room=(1, 0), num_running=9, waiting_prefill_tokens=500),
        a_replica("b", room=(1, 0), num_running=9),
    ]
    assert route(an_ask(), busy, RoutingState()) == Choice("b", last_hop=True)


def test_a_replica_where_it_fits_is_worth_some_company(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [
        a_replica("fits", num_running=8, tightest_tpot_s=0.05),
        a_replica("not", room=(1, 0), num_running=2, tightest_tpot_s=0.05),
    ]
    assert route(an_ask(), replicas, RoutingState()) == Choice("fits", last_hop=False)


def test_where_the_queue_alone_breaks_its_promise_it_does_not_wait(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [
        a_replica("queue", room=(1, 0), num_running=1, waiting_prefill_tokens=950),
        a_replica("busy", room=(1, 0), num_running=30),
    ]
    assert route(an_ask(), replicas, RoutingState()) == Choice("busy", last_hop=True)


def test_when_too_many_run_everywhere_and_slack_is_left_it_pends(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    crowds = [a_replica(name, room=(1, 0), num_running=CROWD) for name in "ab"]
    choice = route(an_ask(age_s=0.3), crowds, RoutingState())
    assert choice.replica is None
    assert choice.pend_s == pytest.approx(1.0 - 0.3 - (0.010 + 0.100))


def test_who_was_declined_everywhere_pends_until_they_report_again(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica(name) for name in "ab"]
    declined = an_ask(exclude=frozenset("ab"), hops=2)
    assert route(declined, replicas, RoutingState()).pend_s > 0
    assert route(an_ask(exclude=frozenset("a")), replicas, RoutingState()).replica == "b"


def test_when_no_slack_is_left_the_last_hop_decides(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    busy = [
        a_replica("a", room=(1, 0), num_running=CROWD, waiting_prefill_tokens=500),
        a_replica("b", room=(1, 0), num_running=CROWD),
    ]
    assert route(an_ask(age_s=0.95), busy, RoutingState()) == Choice("b", last_hop=True)
    declined = an_ask(age_s=0.95, exclude=frozenset("ab"))
    assert route(declined, busy, RoutingState()) == Choice("b", last_hop=True)


def test_what_does_not_fit_an_idle_replica_is_not_made_to_wait(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica("a", room=(1, 50)), a_replica("b", room=(1, 50), num_running=CROWD)]
    assert route(an_ask(), replicas, RoutingState()) == Choice("a", last_hop=True)
    busy = [a_replica("a", room=(1, 50)), a_replica("b", room=(1, 50), num_running=5)]
    assert route(an_ask(), busy, RoutingState()) == Choice("b", last_hop=True)


def test_a_prompt_too_long_for_anybody_is_refused_at_once(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica(name, num_running=3) for name in "ab"]
    long = an_ask(num_prompt_tokens=5000, max_prompt_tokens=4096)
    assert route(long, replicas, RoutingState()).last_hop


def test_a_stale_report_is_never_headroom(a_replica: MakeReplica, an_ask: MakeAsk) -> None:
    replicas = [a_replica("a", age_s=1.5), a_replica("b", room=(1, 0), num_running=CROWD),
                a_replica("c", room=(1, 0), num_running=CROWD)]  # fmt: skip
    assert route(an_ask(), replicas, RoutingState()).pend_s > 0


def test_all_stale_means_unknown_and_least_in_flight(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica(n, age_s=2.0, num_inflight=i) for n, i in (("a", 3), ("b", 1), ("c", 2))]
    assert route(an_ask(), replicas, RoutingState()) == Choice("b", last_hop=False)
    left = an_ask(exclude=frozenset("bc"))
    assert route(left, replicas, RoutingState()) == Choice("a", last_hop=True)


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ([], Reason.REPLICAS),
        (["draining"], Reason.DRAINING),
        (["draining", "loading"], Reason.LOADING),
    ],
)
def test_when_nobody_is_ready_the_reason_says_why(
    a_replica: MakeReplica, an_ask: MakeAsk, states: list[str], reason: Reason
) -> None:
    replicas = [a_replica(f"r{i}", state=s) for i, s in enumerate(states)]
    assert route(an_ask(), replicas, RoutingState()) == Choice(reason=reason)
    assert route(an_ask(), [*replicas, Replica("new")], RoutingState()).replica is None


def test_what_was_sent_since_the_report_shrinks_the_frontier(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica("a", room=(1, 300), unreported_tokens=250.0, num_inflight=3),
                a_replica("b", room=(1, 100), num_running=12, tightest_tpot_s=0.05)]  # fmt: skip
    assert route(an_ask(), replicas, RoutingState()).replica == "b"


def test_age_and_tightened_targets_shrink_the_frontier_too(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica("a", room=(1, 300), num_running=1, tightest_tpot_s=0.05),
                a_replica("b", room=(1, 900), num_running=6, tightest_tpot_s=0.05)]  # fmt: skip
    assert route(an_ask(), replicas, RoutingState()).replica == "a"
    assert route(an_ask(age_s=0.25), replicas, RoutingState()).replica == "b"
    assert route(an_ask(tightened_s=0.25), replicas, RoutingState()).replica == "b"


def test_a_slowdown_must_still_cover_its_own_service_time(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica(n, room=(1, 900), num_running=5) for n in "ab"]
    slow = Ttft(slowdown=3.0, floor_s=0.0)  # 330 ms for a service time of 110 ms
    assert route(an_ask(ttft=slow, age_s=0.21), replicas, RoutingState()).replica is not None
    assert route(an_ask(ttft=slow, age_s=0.23), replicas, RoutingState()).last_hop


def test_a_tight_class_joins_those_that_are_tight_already(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [
        a_replica("loose", tightest_tpot_s=0.2, num_running=2),
        a_replica("tight", tightest_tpot_s=0.05, num_running=4),
    ]
    assert route(an_ask(tpot_s=0.05), replicas, RoutingState()).replica == "tight"
    assert route(an_ask(tpot_s=0.2), replicas, RoutingState()).replica == "loose"


def test_overload_spreads_instead_of_packing(a_replica: MakeReplica, an_ask: MakeAsk) -> None:
    replicas = [
        a_replica("loose", tightest_tpot_s=0.2, num_running=2),
        a_replica("tight", tightest_tpot_s=0.05, num_running=4),
    ]
    state = RoutingState()
    for _ in range(20):
        state.asked(declined=True)
    assert state.overloaded
    assert route(an_ask(tpot_s=0.05), replicas, state).replica == "loose"
    for _ in range(1000):
        state.asked(declined=False)
    assert not state.overloaded


def test_a_session_goes_back_to_its_cache_unless_it_waits_longer_there(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    state = RoutingState()
    state.affinity.remember("b", session="s1", prefixes=((7, 80),), num_prompt_tokens=90)
    replicas = [a_replica("a"), a_replica("b")]
    assert route(an_ask(), replicas, state).replica == "a"
    assert route(an_ask(session="s1"), replicas, state).replica == "b"
    assert route(an_ask(prefixes=((3, 40), (7, 80))), replicas, state).replica == "b"
    queued = [a_replica("a"), a_replica("b", waiting_prefill_tokens=200)]
    assert route(an_ask(session="s1"), queued, state).replica == "a"


def test_a_class_that_replicas_do_not_know_yet_is_served(
    a_replica: MakeReplica, an_ask: MakeAsk
) -> None:
    replicas = [a_replica("a", room=None), a_replica("b", room=None, state="draining")]
    replicas.append(a_replica("c", room=None, num_running=3))
    assert route(an_ask(slo_class="new"), replicas, RoutingState()).replica == "a"


def test_baselines_take_turns_or_the_least_loaded(a_replica: MakeReplica, an_ask: MakeAsk) -> None:
    replicas = [a_replica(n, num_running=r) for n, r in (("a", 2), ("b", 0), ("c", 1))]
    replicas.append(a_replica("d", state="loading"))
    turns = RoundRobin()
    took = [turns(an_ask(), replicas, RoutingState()).replica for _ in range(6)]
    assert sorted(t for t in took if t) == ["a", "a", "b", "b", "c", "c"]
    assert LeastLoaded()(an_ask(), replicas, RoutingState()) == Choice("b", last_hop=True)
    assert LeastLoaded()(an_ask(), [], RoutingState()) == Choice(reason=Reason.REPLICAS)


def test_routers_have_names() -> None:
    for name in ROUTERS:
        make_router(name)
    with pytest.raises(BadInput, match="known: sloserve, round-robin, least-loaded"):
        make_router("magic")


VIEWS = st.lists(
    st.builds(
        lambda state, low, high, age_s, running, inflight: (
            Report(
                service="s",
                replica="r",
                state=state,
                frontier={"chat": Frontier(low, high)},
                num_running=running,
                zero_load_fixed_s=0.01,
                zero_load_per_token_s=0.001,
            ),
            age_s,
            inflight,
        ),
        st.sampled_from(["ready", "loading", "draining"]),
        st.integers(0, 200),
        st.integers(0, 400),
        st.floats(0, 3),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=5,
)


@given(VIEWS, st.sets(st.integers(0, 4)), st.integers(0, 3), st.floats(0, 2), st.data())
def test_every_choice_is_one_of_three_and_names_a_replica_that_is_ready(
    views: list[tuple[Report, float, int]],
    excluded: set[int],
    hops: int,
    age_s: float,
    data: st.DataObject,
) -> None:
    replicas = [Replica(f"r{i}", r, a, n) for i, (r, a, n) in enumerate(views)]
    ask = Ask(
        slo_class="chat",
        num_prompt_tokens=data.draw(st.integers(1, 500)),
        ttft=Ttft(target_s=1.0),
        tpot_s=0.05,
        age_s=age_s,
        exclude=frozenset(f"r{i}" for i in excluded),
        hops=hops,
        max_hops=4,
    )
    choice = route(ask, replicas, RoutingState())
    ready = {r.name for r in replicas if r.ready}
    if choice.replica is not None:
        assert choice.replica in ready
        assert choice.pend_s == 0.0
        if ask.hops + 1 >= ask.max_hops:
            assert choice.last_hop
        if not choice.last_hop:
            assert choice.replica not in ask.exclude
    elif choice.pend_s > 0.0:
        assert ready
    else:
        assert choice.reason
