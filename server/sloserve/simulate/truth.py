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
    deviation of a log-normal factor, `straggler_share` of the steps take `straggler_factor`
    times as long.
    """

    bias: float = 0.0
    noise: float = 0.03
    straggler_share: float = 0.01
    straggler_factor: float = 1.5

    @property
    def exact(self) -> bool:
        """Whether the profile tells the truth to the last digit."""
        return self.bias == 0 and self.noise == 0 and self.straggler_share == 0


EXACT = TruthSpec(bias=0.0, noise=0.0, straggler_share=0.0)


class Truth:
    """Draws step times; the same seed, the same draws."""

    def __init__(self, model: StepModel, spec: TruthSpec, *, seed: str) -> None:
        self._model = model.scaled(1 + spec.bias) if spec.bias else model
        self._spec = spec
        self._dice = random.Random(seed)

    def step_s(self, batch: Batch) -> float:
        """Seconds this step takes."""
        seconds = self._model.step_s(
            batch.num_tokens, context=float(batch.context), pairs=batch.pairs
        )
        spec = self._spec
        if spec.exact:
            return seconds
        if spec.noise:
            sigma = math.sqrt(math.log(1 + spec.noise**2))  # mean 1, standard deviation `noise`
            seconds *= self._dice.lognormvariate(-sigma * sigma / 2, sigma)
        if spec.straggler_share and self._dice.random() < spec.straggler_share:
            seconds *= spec.straggler_factor
        return seconds
