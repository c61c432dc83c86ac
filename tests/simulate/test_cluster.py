from collections.abc import Callable
from dataclasses import replace

import pytest

from sloserve.load.builtin import load_trace
from sloserve.load.report import Window
from sloserve.load.trace import Trace
from sloserve.perf import StepModel
from sloserve.planner import Plan, Probe, Snapshot
from sloserve.planner.policies import make_policy
from sloserve.scheduler import PromiseBroken
from sloserve.simulate.acceptance import constant
from sloserve.simulate.cluster import Cluster
from sloserve.simulate.run import simulate
from sloserve.simulate.settings import Lengths, SimSettings
from sloserve.simulate.truth import TruthSpec
from sloserve.slo import SloClass
from sloserve.wire import Frontier

MakeTrace = Callable[..., Trace]
Simulated = Callable[[Trace, SimSettings], Window]

MIX = {"conversation": {"chat": 0.7, "reason": 0.3}, "coding": {"code": 1.0}}


@pytest.fixture(scope="module")
def mix() -> Trace:
    trace = load_trace("builtin:mix", max_total_tokens=2048).classed(MIX, seed=5)
    return trace.at_rate(24.0).window(30.0, 8.0)


def test_one_request_takes_a_step_a_token(
    a_trace: MakeTrace, steps_of_100ms: SimSettings, classes: dict[str, SloClass]
) -> None:
    settings = replace(steps_of_100ms, policy="fcfs", way_in_s=0.01, way_out_s=0.02)
    cluster = Cluster(classes, settings, new_policy=lambda: make_policy("fcfs"))
    (record,) = cluster.run(a_trace((1.0, 50, 3)))
    assert [e.at_s for e in record.emissions] == pytest.approx([1.13, 1.23, 1.33])
    assert record.sent_s == 1.0


def test_a_deterministic_queue_agrees_with_hand_arithmetic(
    a_trace: MakeTrace, steps_of_100ms: SimSettings, simulated: Simulated
) -> None:
    """M/D/1 by hand: one slot, 100 ms of service each, first come first served."""
    settings = replace(steps_of_100ms, policy="fcfs", max_running=1)
    times = (0.0, 0.0, 0.05, 0.3, 0.9)
    window = simulated(a_trace(*((t, 8, 1) for t in times)), settings)
    waits = window.all.ttft
    # ends: 0.1, 0.2, 0.3, 0.4, 1.0
    assert waits.count == 5
    assert waits.mean == pytest.approx((0.1 + 0.2 + 0.25 + 0.1 + 0.1) / 5)
    assert waits.grid[-1] == pytest.approx(0.25)
    assert window.all.attained == 5


def test_a_random_queue_waits_as_long_as_theory_says(
    steps_of_100ms: SimSettings, simulated: Simulated, a_trace: MakeTrace
) -> None:
    """M/D/1 at load 0.5: mean wait = load / (2 (1 - load)) services, plus the service itself."""
    rows = load_trace("synthetic:requests=6000,rate=5,prompt=8,prompt_cv=0,output=1,output_cv=0")
    settings = replace(steps_of_100ms, policy="fcfs", max_running=1)
    window = simulated(a_trace(*((a.t_s, 8, 1) for a in rows.arrivals)), settings)
    assert window.all.ttft.mean == pytest.approx(0.1 * (1 + 0.5 / (2 * 0.5)), rel=0.08)


def test_the_same_seed_gives_the_same_run_and_another_seed_other_noise(
    mix: Trace, settings: SimSettings, simulated: Simulated
) -> None:
    noisy = replace(settings, truth=TruthSpec(), lengths=Lengths.LIMIT)
    first, second = simulated(mix, noisy), simulated(mix, noisy)
    assert first.classes == second.classes
    assert simulated(mix, replace(noisy, seed=1)).classes != first.classes


@pytest.mark.parametrize(("num_blocks", "overlap"), [(8192, False), (1500, False), (1500, True)])
def test_with_an_exact_model_and_known_lengths_no_admitted_token_is_late(
    mix: Trace, settings: SimSettings, simulated: Simulated, num_blocks: int, overlap: bool
) -> None:
    settings = replace(settings, num_blocks=num_blocks, overlap=overlap)
    assert settings.strict
    window = simulated(mix, settings)  # raises PromiseBroken otherwise
    row = window.all
    assert window.facts["strict"] is True
    assert row.attained == row.decisions.get("admitted", 0) + row.decisions.get("deferred", 0)


def test_a_run_planned_ahead_is_the_same_every_time(
    mix: Trace, settings: SimSettings, simulated: Simulated
) -> None:
    ahead = replace(settings, overlap=True, replicas=2)
    load = mix.at_rate(40.0).window(0.0, 5.0)
    first, second = simulated(load, ahead), simulated(load, ahead)
    assert first.classes == second.classes
    assert first.all.attained > 0


class Overcommitted:
    """Admits everything and prefills first, whatever was promised."""

    name = "sloserve"

    def plan(self, snapshot: Snapshot) -> Plan:
        waiting = snapshot.waiting
        prefills = [r for r in (*snapshot.running, *waiting) if not r.decodes]
        rows = prefills or snapshot.running
        return Plan(tokens={r.id: r.num_left for r in rows}, admitted=tuple(r.id for r in waiting))

    def frontier(self, snapshot: Snapshot, probe: Probe) -> Frontier:
        return Frontier(1, probe.max_prompt)

    def fork(self) -> "Overcommitted":
        return self


@pytest.mark.parametrize("overlap", [False, True])
def test_drafts_break_no_promise_and_the_right_ones_keep_more(
    mix: Trace, settings: SimSettings, simulated: Simulated, overlap: bool
) -> None:
    kept = {}
    for acceptance in (None, 0.0, 0.8):
        profile = None if acceptance is None else constant(acceptance)
        drafted = replace(settings, num_blocks=1500, acceptance=profile, overlap=overlap)
        assert drafted.strict
        row = simulated(mix, drafted).all  # raises PromiseBroken otherwise
        assert row.attained == row.decisions.get("admitted", 0) + row.decisions.get("deferred", 0)
        kept[acceptance] = row.attained
    assert kept[0.8] >= kept[None]
    assert kept[0.0] >= 0.98 * kept[None]


def test_the_assertion_inside_a_strict_run_catches_a_policy_that_promises_too_much(
    mix: Trace, settings: SimSettings, classes: dict[str, SloClass]
) -> None:
    cluster = Cluster(classes, settings, new_policy=Overcommitted)
    with pytest.raises(PromiseBroken, match="was due at"):
        cluster.run(mix)


def test_steps_that_take_longer_than_the_profile_says_are_learned(
    mix: Trace, settings: SimSettings, simulated: Simulated
) -> None:
    slow = replace(settings, truth=TruthSpec(0.1, 0.0, 0.0), lengths=Lengths.LIMIT)
    assert not slow.strict
    assert simulated(mix.at_rate(16.0), slow).all.attainment > 0.95


def test_a_request_that_no_time_is_left_for_is_a_miss_with_a_reason(
    a_trace: MakeTrace, steps_of_100ms: SimSettings, simulated: Simulated
) -> None:
    rows = a_trace((0.0, 8, 3), slo_class="code")  # 30 ms a token can't be had from 100 ms steps
    window = simulated(rows, steps_of_100ms)
    assert window.all.attained == 0
    assert sum(window.all.reasons.values()) == 1


@pytest.mark.parametrize("router", ["sloserve", "round-robin", "least-loaded"])
def test_three_replicas_serve_what_one_can_not(
    mix: Trace, settings: SimSettings, simulated: Simulated, router: str
) -> None:
    load = mix.at_rate(90.0)
    one = simulated(load, settings).all.attained
    three = simulated(load, replace(settings, replicas=3, router=router)).all
    assert three.attained > 1.1 * one
    assert three.attainment > 0.95
    assert three.offered == len(load)
    assert sum(three.endings.values()) == len(load)


@pytest.mark.parametrize("policy", ["fcfs", "edf", "edf-drop"])
def test_every_policy_ends_every_request(
    mix: Trace, settings: SimSettings, simulated: Simulated, policy: str
) -> None:
    window = simulated(mix, replace(settings, policy=policy))
    assert not window.facts["strict"]
    assert "unfinished" not in window.all.endings
    assert window.facts["policy_errors"] == 0


def test_thinking_tokens_have_their_own_pace(
    a_trace: MakeTrace, settings: SimSettings, simulated: Simulated, flat: StepModel
) -> None:
    """40 ms steps: too slow for thinking at 30 ms a token, fast enough for answers at 60 ms."""
    slow = replace(settings, policy="fcfs", model=replace(flat, w=0.04))
    rows = a_trace((0.0, 8, 20), slo_class="reason")
    assert simulated(rows, replace(slow, thinking_share=0.9)).all.attained == 0
    assert simulated(rows, replace(slow, thinking_share=0.05)).all.attained == 1


def test_a_replica_that_never_ends_leaves_unfinished_requests(
    a_trace: MakeTrace, steps_of_100ms: SimSettings, classes: dict[str, SloClass]
) -> None:
    settings = replace(steps_of_100ms, policy="fcfs", drain_s=1.0)
    window = simulate(a_trace((0.0, 8, 500)), classes=classes, settings=settings)
    assert window.all.endings == {"unfinished": 1}
    assert window.all.attained == 0
