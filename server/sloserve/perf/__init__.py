"""How long a step takes: the model, its fit, its profile files, its online correction."""

from sloserve.perf.correction import OnlineCorrection
from sloserve.perf.fit import BadFit, Fit, FitError, evaluate, fit
from sloserve.perf.model import StepModel
from sloserve.perf.profile import (
    Profile,
    builtin_profile,
    builtin_profiles,
    load_profile,
    save_profile,
)
from sloserve.perf.samples import BatchKind, Sample, sample_of

__all__ = [
    "BadFit",
    "BatchKind",
    "Fit",
    "FitError",
    "OnlineCorrection",
    "Profile",
    "Sample",
    "StepModel",
    "builtin_profile",
    "builtin_profiles",
    "evaluate",
    "fit",
    "load_profile",
    "sample_of",
    "save_profile",
]
