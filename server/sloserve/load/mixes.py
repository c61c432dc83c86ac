"""
Synthetic load: renewal arrivals and log-normal lengths, drawn independently.

Prompt and output lengths of real traces are as good as uncorrelated, so every field has its own
stream of random numbers. Inter-arrival times are gamma with a coefficient of variation `cv`
(1 = Poisson), as benchmark tools draw them.
"""

import math
import random
from dataclasses import dataclass, fields

from sloserve.errors import BadInput
from sloserve.load.trace import Arrival, Trace


@dataclass(frozen=True, slots=True)
class Mix:
    """What to draw: means and coefficients of variation (standard deviation / mean)."""

    requests: int = 1000
    rate: float = 1.0  # requests/s
    cv: float = 1.0  # of the gaps; 0: one every 1/rate s
    prompt: float = 512.0  # tokens, mean
    prompt_cv: float = 0.6
    output: float = 128.0
    output_cv: float = 0.8


def synthetic(text: str, *, seed: int) -> Trace:
    """The trace of `requests=2000,cv=2,prompt=800,output=200,...`; raises BadInput."""
    return draw(_parse(text), seed=seed, name=f"synthetic:{text}" if text else "synthetic")


def draw(mix: Mix, *, seed: int, name: str = "synthetic") -> Trace:
    """A trace of this mix; the same seed, the same trace."""
    gaps, prompts, outputs = (random.Random(f"{seed}/{part}") for part in ("gap", "in", "out"))
    t_s = 0.0
    arrivals = []
    for _ in range(mix.requests):
        arrivals.append(
            Arrival(
                t_s=t_s,
                prompt_tokens=_length(prompts, mix.prompt, mix.prompt_cv),
                output_tokens=_length(outputs, mix.output, mix.output_cv),
            )
        )
        t_s += _gap_s(gaps, mix)
    return Trace(name, tuple(arrivals), max(t_s, 1e-9))


def _gap_s(dice: random.Random, mix: Mix) -> float:
    if mix.cv == 0:
        return 1 / mix.rate
    shape = 1 / mix.cv**2
    return dice.gammavariate(shape, 1 / (mix.rate * shape))


def _length(dice: random.Random, mean: float, cv: float) -> int:
    """A log-normal draw with this mean and coefficient of variation, at least one token."""
    variance = math.log(1 + cv * cv)
    drawn = dice.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))
    return max(1, round(drawn))


def _parse(text: str) -> Mix:
    known = {f.name for f in fields(Mix)}
    values: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            values[name] = math.nan
        least = 0.0 if name.endswith("cv") else 1e-6
        if name not in known or not least <= values[name] < math.inf:
            raise BadInput(
                f"{part!r}: expected NAME=NUMBER with NAME one of {', '.join(sorted(known))}",
                field="--trace synthetic:",
            )
    requests = int(values.pop("requests", Mix().requests))
    if requests < 2:
        raise BadInput(f"{requests} requests, at least 2 needed", field="--trace synthetic:")
    return Mix(requests=requests, **values)
