"""How long a step takes: the model, its fit, its profile files, its online correction."""

from sloserve.perf.model import StepModel

__all__ = ["StepModel"]
