"""What the trace replay makes of what it measured: curves, counters, step times."""

import math
import random
from dataclasses import asdict

import pytest
from bench.replay_calibrate import Host, noise_of, sample_of_step, thinned
from bench.replay_plan import Planned, rates_about
from bench.replay_service import Counted, parse_counters, since
from bench.replay_summary import Curve

from sloserve.perf import Sample, StepModel
from sloserve.scheduler import Batch
from sloserve.simulate.truth import Truth, TruthSpec

DECODE = Batch(
    rows=[],
    planned_s=0.0,
    predicted_s=0.005,
    stored_s=0.005,
    num_tokens=1,
    num_decodes=1,
    num_best_effort_tokens=0,
    context=0,
    pairs=0.0,
)
PLAN = Planned("conversation", "fcfs", "fcfs:max_batch_tokens=192", 1.0, {}, rates_about(1.0))


def test_the_rates_to_measure_lie_around_the_predicted_capacity() -> None:
    assert PLAN.rates == (0.8, 1.0, 1.2, 1.5)


def test_capacity_is_where_the_mean_of_the_repeats_falls_through_at_rates_really_offered() -> None:
    curve = Curve(PLAN)
    curve.offered = {1.0: [0.9, 1.1], 1.2: [1.4, 1.4]}
    curve.kept = {1.0: [0.9, 1.0], 1.2: [0.9, 0.8]}
    assert curve.by_offered(curve.kept) == pytest.approx({1.0: 0.95, 1.4: 0.85})
    assert curve.capacity(curve.kept) == pytest.approx(1.2)


def test_a_curve_that_never_falls_through_has_no_capacity() -> None:
    curve = Curve(PLAN, offered={1.0: [1.0], 1.2: [1.2]}, kept={1.0: [1.0], 1.2: [0.97]})
    assert curve.capacity(curve.kept) is None
    assert curve.holds(curve.kept) == (1.2, False)  # at least so much
    curve.kept = {1.0: [0.7], 1.2: [0.6]}
    assert curve.holds(curve.kept) is None


def test_counters_are_read_per_class_and_only_where_every_promise_was_kept() -> None:
    text = """\
# HELP sloserve_slo_requests_total Requests that count.
sloserve_slo_requests_total{service="s",slo_class="chat"} 12.0
sloserve_slo_attained_total{service="s",slo_class="chat",promise="ttft"} 11.0
sloserve_slo_attained_total{service="s",slo_class="chat",promise="all"} 9.0
sloserve_slo_requests_total{service="s",slo_class="batch"} 1.2e+01
"""
    before = parse_counters(text)
    assert before == {"chat": Counted(12, 9), "batch": Counted(12, 0)}
    later = {"chat": Counted(20, 15), "batch": Counted(12, 0), "new": Counted(3, 2)}
    assert since(before, later) == {
        "chat": Counted(8, 6),
        "batch": Counted(0, 0),
        "new": Counted(3, 2),
    }


def test_a_step_that_followed_no_other_is_no_sample() -> None:
    step = {
        "num_rows": 3,
        "num_decodes": 2,
        "num_prefill_tokens": 30,
        "context": 500,
        "pairs": 450.0,
        "period_s": 0.021,
        "actual_s": 0.020,
    }
    sample = sample_of_step(step)
    assert sample is not None
    assert (sample.num_tokens, sample.time_s) == (32, 0.021)
    assert sample_of_step(step | {"period_s": 2.0}) is None
    assert sample_of_step(step | {"num_rows": 0}) is None


def test_samples_are_thinned_to_an_equal_share_of_every_kind() -> None:
    decodes = [Sample(8, context=4000.0, pairs=0.0, time_s=0.01) for _ in range(4000)]
    prefills = [Sample(128, context=0.0, pairs=8192.0, time_s=0.02) for _ in range(100)]
    kept = thinned([*decodes, *prefills])
    assert sum(sample.context == 0.0 for sample in kept) == 100
    assert 100 < len(kept) <= 1500


def test_slow_steps_are_stragglers_and_the_rest_is_noise_about_a_bias() -> None:
    calm = [1.2 * math.exp(x) for x in (-0.1, 0.1)] * 45
    host = noise_of([[*calm, *[2.4] * 10]])
    assert host.bias == pytest.approx(0.2, rel=0.05)
    assert host.noise == pytest.approx(0.1, rel=0.01)
    assert host.stragglers == pytest.approx(0.1)
    assert host.straggler_factor == pytest.approx(2.0, rel=0.01)
    assert host.drift == 0.0


def test_what_spells_differ_by_beyond_chance_is_drift() -> None:
    def spell(level: float, seed: int) -> list[float]:
        dice = random.Random(seed)
        return [level * dice.lognormvariate(0.0, 0.1) for _ in range(200)]

    host = noise_of([spell(0.8 if i % 2 else 1.2, i) for i in range(20)])
    assert host.drift == pytest.approx(0.2, rel=0.05)
    assert host.noise == pytest.approx(0.1, rel=0.1)
    assert noise_of([spell(1.0, i) for i in range(20)]).drift < 0.01


def test_what_noise_is_measured_on_simulated_steps_is_what_they_were_drawn_with() -> None:
    drawn = Host(bias=0.1, noise=0.08, stragglers=0.05, straggler_factor=1.6, drift=0.15)
    model = StepModel(w=0.005, a0=0.0, c1=0.0, a1=0.0, b=0.0, d=0.0, k2=0.0)
    spec = TruthSpec(
        bias=drawn.bias,
        noise=drawn.noise,
        straggler_share=drawn.stragglers,
        straggler_factor=drawn.straggler_factor,
        drift=drawn.drift,
        drift_s=drawn.drift_s,
    )
    found = noise_of(
        [
            [truth.step_s(DECODE) / 0.005 for _ in range(200)]
            for truth in (Truth(model, spec, seed=f"spell {i}") for i in range(200))
        ]
    )
    assert asdict(found) == pytest.approx(asdict(drawn), abs=0.04, rel=0.1)
