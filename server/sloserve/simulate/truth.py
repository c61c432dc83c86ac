"""How long a simulated step really takes: a step model of its own, with noise."""

import math
import random
from dataclasses import dataclass

from sloserve.perf import StepModel
from sloserve.scheduler import Batch


@dataclass(frozen=True, slots=True)
class TruthSpec:
    """
    What the planner's model does not know.

    `bias` 0.1: steps really take 10 % longer than the profile says. `noise` is the standard
    deviation of a log-normal factor that is drawn for each step, `straggler_share` of the steps
    take `straggler_factor` times as long. `drift` is the standard deviation of a log-normal
    factor that changes slowly, as on machines with neighbours: after `drift_s` seconds of steps
    its logarithm is correlated by 1/e with what it was (an Ornstein-Uhlenbeck process).
    """

    bias: float = 0.0
    noise: float = 0.03
    straggler_share: float = 0.01
    straggler_factor: float = 1.5
    drift: float = 0.0
    drift_s: float = 10.0

    @property
    def exact(self) -> bool:
        """Whether the profile tells the truth to the last digit."""
        return not (self.bias or self.noise or self.straggler_share or self.drift)


EXACT = TruthSpec(bias=0.0, noise=0.0, straggler_share=0.0)


class Truth:
    """Draws step times; the same seed, the same draws."""

    def __init__(self, model: StepModel, spec: TruthSpec, *, seed: str) -> None:
        self._model = model.scaled(1 + spec.bias) if spec.bias else model
        self._spec = spec
        self._dice = random.Random(seed)
        self._drift_sigma = _sigma(spec.drift)
        self._drift_log = self._dice.gauss(0.0, self._drift_sigma) if spec.drift else 0.0

    def step_s(self, batch: Batch) -> float:
        """Seconds this step takes."""
        seconds = self._model.step_s(
            batch.num_tokens,
            context=float(batch.context),
            pairs=batch.pairs,
            drafts=batch.num_draft_steps,
        )
        spec = self._spec
        if spec.exact:
            return seconds
        if spec.noise:
            sigma = _sigma(spec.noise)
            seconds *= self._dice.lognormvariate(-sigma * sigma / 2, sigma)
        if spec.straggler_share and self._dice.random() < spec.straggler_share:
            seconds *= spec.straggler_factor
        if spec.drift:
            seconds *= math.exp(self._drift_log - self._drift_sigma**2 / 2)
            self._move_drift(seconds)
        return seconds

    def _move_drift(self, seconds: float) -> None:
        kept = math.exp(-seconds / self._spec.drift_s)
        fresh = self._drift_sigma * math.sqrt(1 - kept * kept)
        self._drift_log = kept * self._drift_log + self._dice.gauss(0.0, fresh)


def _sigma(deviation: float) -> float:
    """The log-normal parameter of a factor with mean 1 and this standard deviation."""
    return math.sqrt(math.log(1 + deviation**2))
