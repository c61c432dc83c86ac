"""Builders: a step model of round numbers, classes, traces, and whole simulated windows."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from sloserve.load.reader import from_arrivals
from sloserve.load.report import Window
from sloserve.load.trace import Arrival, Trace
from sloserve.perf import StepModel
from sloserve.simulate.run import simulate
from sloserve.simulate.settings import Lengths, SimSettings
from sloserve.simulate.truth import EXACT
from sloserve.slo import SloClass, Stage, Ttft

FLAT = StepModel(w=0.1, a0=1e-12, c1=0.0, a1=1e-12, b=0.0, d=0.0)
"""Every step takes 100 ms, whatever is in it (a picosecond a token aside)."""
GPU = StepModel(w=4.2e-3, a0=8.6e-6, c1=3.0e-3, a1=1.8e-5, b=3.1e-8, d=2.6e-9)
"""About a large GPU with an 8B model."""


@pytest.fixture
def flat() -> StepModel:
    return FLAT


@pytest.fixture
def classes() -> dict[str, SloClass]:
    """`chat` and `code`, absolute; `reason` with two stages."""
    return {
        "chat": SloClass("chat", Ttft(target_s=0.5), (Stage("decode", 0.05),)),
        "code": SloClass("code", Ttft(slowdown=5.0, floor_s=0.1), (Stage("decode", 0.03),)),
        "reason": SloClass(
            "reason",
            Ttft(target_s=1.0),
            (Stage("thinking", 0.03, "</think>"), Stage("answer", 0.06)),
        ),
    }


@pytest.fixture
def settings() -> SimSettings:
    """One replica, exact and with known lengths."""
    return SimSettings(policy="sloserve", model=GPU, truth=EXACT, lengths=Lengths.ORACLE)


@pytest.fixture
def steps_of_100ms(settings: SimSettings) -> SimSettings:
    return replace(settings, model=FLAT)


@pytest.fixture
def a_trace() -> Callable[..., Trace]:
    def make(
        *rows: tuple[float, int, int], slo_class: str = "chat", duration_s: float = 0
    ) -> Trace:
        """Arrivals (time, prompt, output) of one class."""
        arrivals = [Arrival(t, p, o, slo_class) for t, p, o in rows]
        return from_arrivals("made", arrivals, duration_s=duration_s or rows[-1][0] + 1.0)

    return make


@pytest.fixture
def simulated(classes: dict[str, SloClass]) -> Callable[[Trace, SimSettings], Window]:
    return lambda trace, settings: simulate(trace, classes=classes, settings=settings)
