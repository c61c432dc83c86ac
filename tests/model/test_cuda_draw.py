"""Drawing as a GPU does it says what drawing on the host says; run here on CPU tensors."""

import random

import numpy as np
import pytest
import torch

from sloserve.engine.sampling import SamplingParams
from sloserve.model.cuda_draw import draw_on_device, keep_likely_on_device
from sloserve.model.draw import invert, keep_likely, weigh

VOCABULARY = 517


def some_sampling(source: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=source.choice([0.3, 0.7, 1.0, 1.9]),
        top_p=source.choice([1.0, 1.0, 0.01, 0.5, 0.9, 0.999]),
        top_k=source.choice([0, 0, 1, 2, 40, 516, 517, 100_000]),
        min_p=source.choice([0.0, 0.0, 0.05, 0.9, 1.0]),
    )


def parameters(sampling: list[SamplingParams]) -> dict[str, torch.Tensor]:
    top_k = [s.top_k if 0 < s.top_k < VOCABULARY else VOCABULARY for s in sampling]
    return {
        "top_k": torch.tensor(top_k, dtype=torch.float64),
        "top_p": torch.tensor([s.top_p for s in sampling], dtype=torch.float64),
        "min_p": torch.tensor([s.min_p for s in sampling], dtype=torch.float64),
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_same_weights_are_kept_as_on_the_host(seed: int) -> None:
    source = random.Random(seed)
    torch.manual_seed(seed)
    sampling = [some_sampling(source) for _ in range(32)]
    logits = torch.randn(32, VOCABULARY) * source.choice([0.1, 3.0, 20.0])
    if seed % 2:  # ties, also with the last one kept
        logits = logits.round()
    weights = logits.softmax(-1)
    kept = keep_likely_on_device(weights, **parameters(sampling), cut=True)
    assert torch.equal(kept > 0, torch.from_numpy(keep_likely(weights.numpy(), sampling)) > 0)
    assert torch.equal(kept[kept > 0], weights[kept > 0])


def test_without_cuts_only_min_p_drops() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    sampling = [SamplingParams(min_p=0.5), SamplingParams()]
    given = {name: t[:2] for name, t in parameters(sampling).items()}
    kept = keep_likely_on_device(weights, **given, cut=False)
    assert kept.tolist() == [[0.5, pytest.approx(0.3), 0.0], weights[1].tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_tokens_are_drawn_as_on_the_host(seed: int) -> None:
    source = random.Random(seed)
    torch.manual_seed(seed)
    logits = torch.randn(40, VOCABULARY) * 3
    drawn = sorted(source.sample(range(40), 25))
    sampling = [some_sampling(source) for _ in drawn]
    uniform = np.random.default_rng(seed).random(len(drawn))
    expected = logits.argmax(-1).tolist()
    for i, token in zip(drawn, invert(weigh(logits[drawn], sampling), uniform), strict=True):
        expected[i] = token
    assert draw_on_device(logits, sampling, drawn=drawn, uniform=uniform) == expected


def test_draws_on_a_device_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(20_000, 1)
    uniform = np.random.default_rng(0).random(len(logits))
    sampling = [SamplingParams(top_k=3)] * len(logits)
    found = draw_on_device(logits, sampling, drawn=range(len(logits)), uniform=uniform)
    counts = np.bincount(found, minlength=4)
    expected = logits[0, :3].softmax(-1).numpy() * len(logits)
    assert counts[3] == 0
    assert (((counts[:3] - expected) ** 2) / expected).sum() < 13.8  # 2 degrees, p = 0.001
