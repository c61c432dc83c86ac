"""What is recorded of a real answer, and what the figures of a text are made from."""

import pytest

pytest.importorskip("torch", reason="needs PyTorch: make setup")

from bench.acceptance import alphas, recorded, tokens_per_step

from sloserve.simulate.acceptance import Recorded


def test_the_drafter_is_asked_at_every_place_after_the_first_token() -> None:
    # at place 1 nothing ends in 9; at 2 the pair (1, 2) was seen, 3 and 4 follow; at 4 all agrees
    record = recorded([1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 7])
    assert record == Recorded(grades="01233", rights="03210")


def test_alphas_count_a_draft_only_where_those_before_it_were_right() -> None:
    record = Recorded(grades="01111", rights="50123")
    assert alphas([record], 3) == pytest.approx([3 / 4, 2 / 3, 1 / 2])


def test_tokens_a_step_skip_the_places_that_accepted_drafts_cover() -> None:
    record = Recorded(grades="111111", rights="200100")
    # steps at places 1 (two right: on to 4), 4 (one right: on to 6), 6
    assert tokens_per_step([record], most=8) == pytest.approx(6 / 3)
    assert tokens_per_step([record], most=0) == 1.0
