"""Whole loads through the policies, on an independent replay."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloserve.perf import StepModel
from sloserve.planner import Limits
from sloserve.planner.policies import make_policy

CLASSES = {"strict": (1.0, 0.05), "slow": (0.7, 0.1), "batch": (5.0, 0.2)}


@pytest.fixture(scope="module")
def poisson() -> Callable[..., list[tuple[float, int, int, str]]]:
    """Arrivals as (time, prompt, output, class)."""

    def make(rate: float, duration_s: float, seed: int) -> list[tuple[float, int, int, str]]:
        rng = random.Random(seed)
        t, out = 0.0, []
        while (t := t + rng.expovariate(rate)) < duration_s:
            prompt = int(min(4000, 20 + rng.lognormvariate(6.3, 0.9)))
            output = int(min(400, 1 + rng.lognormvariate(3.8, 0.9)))
            out.append((t, prompt, output, rng.choice(tuple(CLASSES))))
        return out

    return make


def loads(load: Any, arrivals: list[tuple[float, int, int, str]]) -> list[Any]:
    return [load(t, p, o, *CLASSES[name], slo_class=name) for t, p, o, name in arrivals]


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    rate=st.floats(2.0, 30.0),
    blocks=st.sampled_from((600, 1500, 8192)),
    tentative=st.booleans(),
    degrade=st.booleans(),
    slots=st.sampled_from((12, 256)),
)
def test_with_an_exact_model_and_known_lengths_no_promised_token_is_late(
    replay: Any,
    load: Any,
    poisson: Any,
    seed: int,
    rate: float,
    blocks: int,
    tentative: bool,
    degrade: bool,
    slots: int,
) -> None:
    world = replay(
        policy=make_policy("sloserve"),
        limits=Limits(block_size=16, num_blocks=blocks, max_running=slots),
        tentative=tentative,
        degrade=degrade,
        strict=True,
    ).run(loads(load, poisson(rate, 6.0, seed)))
    assert all(life.done for life in world.lives.values())
    assert not any(life.gave_up for life in world.lives.values())


@pytest.mark.parametrize("degrade", [False, True])
def test_goodput_does_not_fall_under_overload(
    replay: Any, load: Any, poisson: Any, degrade: bool
) -> None:
    goodput = {}
    for factor in (1.0, 1.5, 3.0):
        world = replay(policy=make_policy("sloserve"), known=False, degrade=degrade)
        world.run(loads(load, poisson(11.0 * factor, 12.0, 3)), until_s=25.0)
        goodput[factor] = world.attained() * len(world.lives) / 12.0
    assert goodput[1.0] > 8
    assert goodput[1.5] >= goodput[1.0]
    assert goodput[3.0] >= goodput[1.0]


def test_noise_and_stragglers_cost_few_promises(replay: Any, load: Any, poisson: Any) -> None:
    world = replay(
        policy=make_policy("sloserve"),
        known=False,
        noise_sd=0.03,
        stragglers=0.01,
        margin_s=0.002,
    ).run(loads(load, poisson(12.0, 25.0, 5)))
    lives = world.lives.values()
    assert sum(life.late_while_promised > 0 for life in lives) <= 0.02 * len(lives)


def test_a_gpu_like_machine_keeps_its_promises_too(
    replay: Any, load: Any, poisson: Any, gpu: StepModel
) -> None:
    world = replay(policy=make_policy("sloserve"), model=gpu, strict=True)
    world.run(loads(load, poisson(20.0, 10.0, 6)))
    assert world.attained() > 0.5


def test_best_effort_is_served_while_promises_keep_coming(
    replay: Any, load: Any, poisson: Any
) -> None:
    world = replay(policy=make_policy("sloserve"), degrade=True)
    world.run(loads(load, poisson(18.0, 30.0, 7)), until_s=30.0)
    degraded = [life for life in world.lives.values() if life.refused]
    early = [life for life in degraded if life.load.arrival_s < 10.0]
    assert len(early) > 10
    assert sum(life.first_s is not None for life in early[:3]) >= 2


@pytest.mark.parametrize("name", ["fcfs", "edf", "edf-drop"])
@pytest.mark.parametrize("blocks", [600, 8192])
def test_the_baselines_serve_a_whole_load_to_its_end(
    replay: Any, load: Any, poisson: Any, name: str, blocks: int
) -> None:
    world = replay(
        policy=make_policy(name, max_batch_tokens=256),
        limits=Limits(block_size=16, num_blocks=blocks, max_running=64),
        degrade=True,
        known=False,
    ).run(loads(load, poisson(8.0, 10.0, 8)))
    assert all(life.done for life in world.lives.values())
