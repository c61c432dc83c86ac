"""How far the step model is from what steps really take."""

import pytest

from sloserve.engine.step_error import NUM_STEPS, step_error
from sloserve.engine.timeline import StepRecord


def steps(*ratios: float, predicted_s: float = 0.010) -> list[StepRecord]:
    """Steps that took so many times what was predicted."""
    return [
        StepRecord(
            number=i + 1,
            planned_s=0.0,
            plan_s=0.0,
            predicted_s=predicted_s,
            actual_s=0.0,
            period_s=predicted_s * ratio,
            num_rows=1,
            num_decodes=1,
            num_prefill_tokens=0,
            num_best_effort_tokens=0,
            context=0,
            pairs=0.0,
            num_waiting=0,
            free_blocks=0,
        )
        for i, ratio in enumerate(ratios)
    ]


@pytest.mark.parametrize(
    ("ratio", "off"), [(1.0, False), (1.24, False), (1.26, True), (0.76, False), (0.74, True)]
)
def test_a_quarter_to_either_side_is_off(ratio: float, off: bool) -> None:
    error = step_error(steps(*[ratio] * NUM_STEPS))
    assert (error.num_steps, error.off) == (NUM_STEPS, off)
    assert error.mean_ratio == pytest.approx(ratio)


def test_few_steps_are_told_but_never_called_off() -> None:
    error = step_error(steps(*[3.0] * (NUM_STEPS - 1)))
    assert error.mean_ratio == pytest.approx(3.0)
    assert not error.off


def test_only_the_latest_steps_count() -> None:
    error = step_error(steps(*[9.0] * 500, *[1.0] * NUM_STEPS))
    assert error.mean_ratio == pytest.approx(1.0)


def test_some_stragglers_do_not_make_a_model_wrong() -> None:
    assert not step_error(steps(*([1.0] * 9 + [2.0]) * (NUM_STEPS // 10))).off


def test_without_a_prediction_there_is_nothing_to_judge() -> None:
    assert step_error([]).mean_ratio is None
    assert step_error(steps(1.0, predicted_s=0.0)).num_steps == 0
