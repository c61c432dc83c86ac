"""From samples back to the machine that made them."""

import dataclasses
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloserve.errors import BadInput
from sloserve.perf import BadFit, BatchKind, Sample, StepModel, evaluate, fit, sample_of

Measured = Callable[..., list[Sample]]


def test_exact_samples_give_the_coefficients_back(
    true_model: StepModel, measured: Measured
) -> None:
    found = fit(measured(true_model))
    for name in ("w", "a0", "c1", "a1", "b", "d"):
        assert getattr(found.model, name) == pytest.approx(getattr(true_model, name), rel=0.01)
    assert found.mape < 1e-3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_times_are_found_again_under_noise(
    true_model: StepModel, measured: Measured, seed: int
) -> None:
    found = fit(measured(true_model, noise=0.05, seed=seed)).model
    assert evaluate(found, measured(true_model)).mape < 0.02
    assert found.b == pytest.approx(true_model.b, rel=0.2)
    assert found.a1 == pytest.approx(true_model.a1, rel=0.2)


@settings(max_examples=15, deadline=None)
@given(
    times=st.lists(st.floats(1e-4, 10), min_size=12, max_size=12),
    seed=st.integers(0, 10**6),
)
def test_no_coefficient_is_ever_negative(times: list[float], seed: int) -> None:
    rng = random.Random(seed)
    samples = [
        sample_of(
            decodes=[rng.randrange(1, 4000)] * rng.randrange(0, 60),
            chunks=[(rng.randrange(4000), rng.randrange(1, 2000))],
            time_s=t,
        )
        for t in times
    ]
    found = fit(samples, max_mape=float("inf"), max_p95=float("inf"))
    assert min(dataclasses.astuple(found.model)) >= 0


def test_a_machine_without_a_knee_is_fitted_too(measured: Measured) -> None:
    straight = StepModel(w=0.004, a0=6e-5, c1=0.004, a1=6e-5, b=8e-7, d=1e-8)
    found = fit(measured(straight))
    assert evaluate(found.model, measured(straight)).p95 < 1e-6


def test_serial_drafts_have_their_own_price() -> None:
    samples = [
        Sample(
            num_tokens=m, context=100.0 * m, pairs=0.0, time_s=0.01 + 1e-4 * m + 0.002 * k, drafts=k
        )
        for m in (1, 2, 4, 8, 16)
        for k in (0, 1, 4)
    ]
    assert fit(samples).model.k2 == pytest.approx(0.002, rel=1e-3)


def test_no_other_model_of_the_same_knee_is_nearer(
    true_model: StepModel, measured: Measured
) -> None:
    """A local check of optimality: no small feasible change of a coefficient lowers the loss."""
    samples = measured(true_model, noise=0.1, seed=7)
    found = fit(samples).model

    def loss(model: StepModel) -> float:
        return sum(
            (model.step_s(s.num_tokens, context=s.context, pairs=s.pairs) / s.time_s - 1) ** 2
            for s in samples
        )

    least = loss(found)
    for name in ("a0", "b", "d"):
        for factor in (0.98, 1.02):
            changed = dataclasses.replace(found, **{name: getattr(found, name) * factor})
            assert loss(changed) >= least * (1 - 1e-9)
    for factor in (0.98, 1.02):  # both pieces together move the constant
        change = found.c1 * (factor - 1)
        changed = dataclasses.replace(found, w=found.w + change, c1=found.c1 + change)
        assert loss(changed) >= least * (1 - 1e-9)


def test_errors_are_told_per_kind_of_batch(true_model: StepModel, measured: Measured) -> None:
    found = fit(measured(true_model, noise=0.05, seed=3))
    assert set(found.by_kind) == set(BatchKind)
    assert sum(e.num_samples for e in found.by_kind.values()) == len(measured(true_model))
    assert 0 < found.mape < 0.05
    assert found.p95 >= found.mape


def test_times_that_follow_no_model_are_refused_loudly(
    true_model: StepModel, measured: Measured
) -> None:
    rng = random.Random(1)
    samples = [
        dataclasses.replace(s, time_s=s.time_s * rng.choice((0.2, 1.0, 5.0)))
        for s in measured(true_model)
    ]
    with pytest.raises(BadFit, match=r"off by \d+% on average .*worst in \w+ batches") as caught:
        fit(samples)
    assert caught.value.fit.mape > 0.25


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([Sample(1, 10.0, 0.0, 0.01)] * 3, "got 3 samples"),
        ([Sample(4, 10.0, 0.0, 0.01)] * 9, "all have 4 tokens"),
        ([Sample(n, 1.0, 0.0, 0.01) for n in range(1, 9)] + [Sample(4, 1.0, 0.0, 0.0)], "took 0.0"),
        ([Sample(n, -1.0, 0.0, 0.01) for n in range(1, 9)], "no number below 0"),
    ],
)
def test_samples_that_determine_nothing_are_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fit(samples)
