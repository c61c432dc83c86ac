"""The figures that routing reads."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.perf import StepModel
from sloserve.planner.frontier import ttft_s
from sloserve.scheduler.report import (
    earliest_first_token_s,
    probe_of,
    token_supply_per_s,
    zero_load_line,
)
from sloserve.slo import SloClass, Stage, Ttft

MODEL = StepModel(w=0.010, a0=1e-6, c1=0.002, a1=1e-4, b=1e-6, d=1e-8)


@given(st.integers(1, 20000), st.floats(1.5, 10.0), st.floats(0.0, 1.0))
def test_a_slowdown_is_never_probed_as_more_than_it_promises(
    num_prompt: int, slowdown: float, floor_s: float
) -> None:
    slo_class = SloClass(
        "chat", ttft=Ttft(slowdown=slowdown, floor_s=floor_s), stages=(Stage("decode", 0.1),)
    )
    probe = probe_of(slo_class, model=MODEL, expected=(100.0, 10.0), max_prompt=20000)
    promised_s = slo_class.ttft.resolve_s(MODEL.prefill_s(num_prompt))
    assert ttft_s(probe, num_prompt) <= promised_s * (1 + 1e-9)
    assert ttft_s(probe, num_prompt) >= 0.9 * promised_s


def test_an_absolute_target_is_probed_as_it_is(a_class: Any) -> None:
    probe = probe_of(a_class(), model=MODEL, expected=(1.0, 0.0), max_prompt=100)
    assert ttft_s(probe, 1) == ttft_s(probe, 100) == 1.0


def test_the_zero_load_line_meets_the_model_at_both_ends() -> None:
    fixed_s, per_token_s = zero_load_line(MODEL)
    assert fixed_s + per_token_s == pytest.approx(MODEL.prefill_s(1))
    assert fixed_s + 1024 * per_token_s == pytest.approx(MODEL.prefill_s(1024))


def test_supply_falls_and_the_first_token_is_later_as_load_grows(a_world: Any) -> None:
    world = a_world(model=MODEL)
    supplies, firsts = [], []
    for _ in range(4):
        snapshot = world.scheduler.snapshot(world.now_s)
        supplies.append(token_supply_per_s(snapshot))
        firsts.append(earliest_first_token_s(snapshot, num_prompt=20))
        world.add(world.request(20, output=30, tpot_s=0.012))
        world.step()
    assert supplies[1] > supplies[2] > supplies[3] > 0
    assert firsts == sorted(firsts)
    assert firsts[0] == pytest.approx(MODEL.prefill_s(20), rel=1e-6)


def test_a_pace_faster_than_any_step_leaves_no_supply(a_world: Any) -> None:
    world = a_world(model=MODEL)
    world.add(world.request(8, output=30, tpot_s=0.001))
    world.step()
    assert token_supply_per_s(world.scheduler.snapshot(world.now_s)) == 0
