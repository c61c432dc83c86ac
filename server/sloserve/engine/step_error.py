"""How far the step model is from what steps really take: a warning, for metrics and people."""

from collections.abc import Sequence
from dataclasses import dataclass

from sloserve.engine.timeline import StepRecord
from sloserve.rules.serving import MOST_OFF

NUM_STEPS = 200
"""Latest steps that are judged; fewer say nothing."""


@dataclass(frozen=True, slots=True)
class StepError:
    """Measured over predicted time of the latest steps."""

    num_steps: int
    """Steps that had a prediction, at most NUM_STEPS."""
    mean_ratio: float | None
    """1 is exact, above it steps take longer than predicted; None: no step had a prediction."""

    @property
    def off(self) -> bool:
        """Whether promises rest on a wrong model; False while too few steps were seen."""
        if self.mean_ratio is None or self.num_steps < NUM_STEPS:
            return False
        return abs(self.mean_ratio - 1) > MOST_OFF


def step_error(records: Sequence[StepRecord]) -> StepError:
    """The error of the last NUM_STEPS of `records` (oldest first); steps of 0 s are left out."""
    ratios = [r.period_s / r.predicted_s for r in records[-NUM_STEPS:] if r.predicted_s > 0]
    return StepError(len(ratios), sum(ratios) / len(ratios) if ratios else None)
