"""How long answers get."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.planner.lengths import EDGES, LengthLaw


def test_before_data_the_prior_is_sane() -> None:
    mean, sd = LengthLaw().conditional(0, 10_000)
    assert 100 < mean < 400
    assert 100 < sd < 1000


def test_the_law_learns_the_mean_and_the_spread() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(100, 300) for _ in range(1500)]
    law = LengthLaw()
    for length in lengths:
        law.observe(length)
    mean, sd = law.conditional(0, 10_000)
    assert mean == pytest.approx(200, rel=0.05)
    assert sd == pytest.approx(58, rel=0.25)


def test_what_is_left_follows_from_tokens_so_far() -> None:
    law = LengthLaw()
    for length in [20] * 500 + [800] * 500:
        law.observe(length)
    assert law.conditional(0, 10_000)[0] == pytest.approx(410, rel=0.1)
    assert law.conditional(100, 10_000)[0] == pytest.approx(700, rel=0.1)
    assert law.conditional(700, 10_000)[0] < 250


def test_old_lengths_fade() -> None:
    law = LengthLaw()
    for _ in range(5000):
        law.observe(1000)
    for _ in range(5000):
        law.observe(10)
    assert law.conditional(0, 10_000)[0] < 200


@given(
    lengths=st.lists(st.integers(1, 200_000), max_size=60),
    n_so_far=st.integers(0, 300_000),
    max_left=st.integers(1, 5000),
)
def test_answers_stay_in_their_range_whatever_was_seen(
    lengths: list[int], n_so_far: int, max_left: int
) -> None:
    law = LengthLaw()
    for length in lengths:
        law.observe(length)
    mean, sd = law.conditional(n_so_far, max_left)
    assert 1 <= mean <= max_left
    assert sd >= 0
    assert mean + sd <= max_left + 1e-6 or sd == 0


def test_the_size_of_a_law_is_bounded() -> None:
    assert len(EDGES) < 150
