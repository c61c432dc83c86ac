"""Builders: models and the samples that they would give."""

import random
from collections.abc import Callable

import pytest

from sloserve.perf import Sample, StepModel, sample_of


@pytest.fixture(scope="session")
def true_model() -> StepModel:
    """A machine with a knee at 260 tokens."""
    return StepModel(w=0.0100, a0=1e-5, c1=0.0048, a1=3e-5, b=4e-8, d=5e-9)


@pytest.fixture(scope="session")
def measured() -> Callable[..., list[Sample]]:
    """Samples of decode, prefill and mixed batches, as `model` with relative noise gives them."""

    def build(model: StepModel, *, noise: float = 0.0, seed: int = 0) -> list[Sample]:
        rng = random.Random(seed)
        batches: list[tuple[list[int], list[tuple[int, int]]]] = []
        for num in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            batches += [([context] * num, []) for context in (16, 256, 2048)]
        for count in (16, 64, 128, 256, 512, 1024, 2048):
            batches += [([], [(prior, count)]) for prior in (0, 1024, 4096)]
            batches += [([512] * num, [(0, count)]) for num in (4, 16, 64)]
        samples = []
        for decodes, chunks in batches:
            bare = sample_of(decodes=decodes, chunks=chunks, time_s=1.0)
            exact_s = model.step_s(bare.num_tokens, context=bare.context, pairs=bare.pairs)
            time_s = exact_s * (1 + noise * rng.uniform(-1, 1))
            samples.append(sample_of(decodes=decodes, chunks=chunks, time_s=time_s))
        return samples

    return build
