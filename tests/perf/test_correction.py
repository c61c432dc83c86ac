"""The stored model, corrected by what steps really took."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.perf import OnlineCorrection, StepModel


def serve(
    correction: OnlineCorrection,
    *,
    factor: float,
    noise: float = 0.03,
    straggler: float = 0.0,
    steps: int = 1000,
    seed: int = 0,
) -> None:
    """Steps of 20 ms by the stored model that take `factor` times that, more or less."""
    rng = random.Random(seed)
    for _ in range(steps):
        late = 1.5 if rng.random() < straggler else 1.0
        correction.observe(0.020, 0.020 * factor * late * rng.gauss(1.0, noise))


def test_the_factor_settles_where_the_machine_is() -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.10)
    assert correction.ratio == pytest.approx(1.10, rel=0.02)


@given(seed=st.integers(0, 10**6))
def test_one_straggler_in_a_hundred_poisons_neither_factor_nor_margin(seed: int) -> None:
    clean, dirty = OnlineCorrection(), OnlineCorrection()
    serve(clean, factor=1.0, seed=seed)
    serve(dirty, factor=1.0, straggler=0.01, seed=seed)
    assert dirty.ratio == pytest.approx(1.0, rel=0.02)
    assert dirty.margin_s < 0.003
    assert 0.0003 < clean.margin_s < 0.003  # 3 % noise on 20 ms: about 1 ms


def test_one_terrible_step_moves_the_factor_by_half_a_per_cent_at_most() -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.0, steps=200)
    before = correction.ratio
    correction.observe(0.020, 60.0)
    assert correction.ratio <= before * 1.0051


def test_a_machine_that_became_twice_as_slow_is_believed() -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.0, steps=500)
    serve(correction, factor=2.0, steps=200)
    assert correction.ratio == pytest.approx(2.0, rel=0.05)


def test_a_machine_that_became_twice_as_fast_is_believed() -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.0, steps=500)
    serve(correction, factor=0.5, steps=300)
    assert correction.ratio == pytest.approx(0.5, rel=0.05)


def test_the_margin_is_what_nineteen_of_twenty_steps_keep() -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.0, steps=2000)
    rng = random.Random(99)
    late = 0
    for _ in range(2000):
        predicted_s = correction.ratio * 0.020
        late += 0.020 * rng.gauss(1.0, 0.03) > predicted_s + correction.margin_s
    assert 0.01 < late / 2000 < 0.10


def test_an_exact_model_has_no_excess() -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.3, noise=0.0, steps=600)
    assert correction.excess_share < 1e-3


def test_the_excess_is_what_steps_take_longer_on_average() -> None:
    correction = OnlineCorrection()
    for number in range(3000):
        correction.observe(0.010, 0.010 * (1.5 if number % 10 == 0 else 1.0))
    # the factor settles where cuts balance: above 1, so that the nine are a little early
    late_by = 1.5 / correction.ratio - 1
    assert correction.excess_share == pytest.approx(late_by / 10, rel=0.25)


def test_one_accident_does_not_close_the_doors() -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.0, noise=0.0, steps=500)
    correction.observe(0.010, 1.0)
    assert correction.excess_share < 0.05


def test_the_start_margin_holds_until_enough_was_seen() -> None:
    correction = OnlineCorrection(start_margin_s=0.004)
    assert correction.margin_s == 0.004
    serve(correction, factor=1.0, noise=0.0, steps=20)
    assert correction.margin_s < 1e-6


def test_a_step_without_a_prediction_teaches_nothing() -> None:
    correction = OnlineCorrection()
    correction.observe(0.0, 1.0)
    assert correction.ratio == 1.0


def test_the_corrected_model_is_the_stored_one_times_the_factor(true_model: StepModel) -> None:
    correction = OnlineCorrection()
    serve(correction, factor=1.2, noise=0.0)
    assert correction.corrected(true_model).step_s(10) == pytest.approx(
        1.2 * true_model.step_s(10), rel=1e-3
    )
