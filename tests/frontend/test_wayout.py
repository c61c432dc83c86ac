"""The measured way out: what the planner subtracts from every deadline."""

import math
import random

import pytest

from sloserve.frontend.wayout import EVERY, NUM_TOKENS, WINDOW_S, WayOut


@pytest.fixture
def told() -> list[float]:
    return []


@pytest.fixture
def way_out(told: list[float]) -> WayOut:
    return WayOut(told.append)


def test_it_tells_the_p99_every_so_many_tokens(way_out: WayOut, told: list[float]) -> None:
    for n in range(10 * EVERY):
        way_out.took(0.1 if n % 200 == 0 else 0.001, now_s=n * 1e-3)
    assert len(told) == 10
    assert told[0] == 0.1
    assert told[-1] == 0.001


def test_a_hiccup_is_forgotten_after_the_window(way_out: WayOut, told: list[float]) -> None:
    way_out.took(5.0, now_s=0.0)
    way_out.settle(1.0)
    assert told[-1] == 5.0
    way_out.took(0.002, now_s=WINDOW_S + 0.5)
    way_out.settle(WINDOW_S + 1.0)
    assert told[-1] == 0.002


def test_with_no_token_at_all_it_shrinks_so_that_requests_get_in_again(
    way_out: WayOut, told: list[float]
) -> None:
    way_out.took(8.0, now_s=0.0)
    for second in range(1, 40):
        way_out.settle(float(second))
    assert told[-1] < 1e-6


def test_the_figure_is_never_negative(way_out: WayOut) -> None:
    way_out.took(-0.5, now_s=0.0)
    way_out.settle(0.0)
    assert way_out.p99_s == 0.0


def test_it_is_the_p99_of_the_latest_tokens_that_are_recent(
    way_out: WayOut, told: list[float]
) -> None:
    chance = random.Random(1)
    tokens: list[tuple[float, float]] = []
    now_s = 0.0
    for _ in range(5000):
        now_s += chance.choice([0.0, 0.004, 0.03])
        tokens.append((now_s, chance.choice([0.001, 0.002, chance.random()])))
        way_out.took(tokens[-1][1], now_s=now_s)
        way_out.settle(now_s)
        recent = sorted(lag for at, lag in tokens[-NUM_TOKENS:] if at >= now_s - WINDOW_S)
        assert told[-1] == recent[math.ceil(0.99 * len(recent)) - 1]
