"""The measured way out: what the planner subtracts from every deadline."""

import pytest

from sloserve.frontend.wayout import EVERY, WINDOW_S, WayOut


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
