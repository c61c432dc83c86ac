"""Drafts out of what was said: the latest place that ends alike, and on from there."""

from collections.abc import Sequence
from typing import overload

import hypothesis.strategies as st
from hypothesis import given

from sloserve.engine.ngram import LONGEST, READ_TOKENS, NgramDrafter
from sloserve.scheduler import Proposal


def propose(tokens: list[int], most: int = 4) -> Proposal:
    return NgramDrafter().propose(1, tokens, most=most)


def test_nothing_is_proposed_where_nothing_was_said_twice() -> None:
    assert propose([]) == Proposal(0)
    assert propose([5]) == Proposal(0)
    assert propose([1, 2, 3, 4]) == Proposal(0)


def test_the_continuation_of_the_longest_match_is_proposed() -> None:
    found = propose([1, 2, 3, 10, 11, 12, 13, 14, 9, 3, 20, 8, 1, 2, 3])
    assert (list(found.tokens), found.grade) == ([10, 11, 12, 13], 3)


def test_of_equal_matches_the_latest_counts() -> None:
    found = propose([1, 2, 3, 10, 1, 2, 3, 20, 30, 40, 50, 1, 2, 3], most=2)
    assert list(found.tokens) == [20, 30]


def test_a_loop_goes_on_turning() -> None:
    found = propose([1, 2, 1, 2, 1, 2], most=5)
    assert list(found.tokens) == [1, 2, 1, 2, 1]
    assert list(propose([7, 7], most=3).tokens) == [7, 7, 7]


def test_requests_have_indices_of_their_own_and_are_forgotten() -> None:
    drafter = NgramDrafter()
    assert drafter.propose(1, [1, 2, 1], most=1).tokens == [2]
    assert drafter.propose(2, [3, 1], most=1).num == 0
    drafter.forget(1)
    assert drafter.propose(1, [4, 1], most=1).num == 0


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 6)), st.integers(1, 8))
def test_a_growing_index_finds_what_a_search_of_the_whole_text_finds(
    tokens: list[int], pieces: list[int], most: int
) -> None:
    drafter = NgramDrafter()
    at = 0
    for piece in [*pieces, len(tokens)]:
        at = min(len(tokens), at + piece)
        drafter.propose(1, tokens[:at], most=most)
    found = drafter.propose(1, tokens, most=most)
    expected = Proposal(0)
    for size in range(min(LONGEST, len(tokens)), 0, -1):
        ends = [e for e in range(size, len(tokens)) if tokens[e - size : e] == tokens[-size:]]
        if ends:
            drafts = list(tokens[ends[-1] :])
            while len(drafts) < most:
                drafts.append(drafts[-(len(tokens) - ends[-1])])
            expected = Proposal(most, drafts[:most], size)
            break
    assert found == expected


class Counted(Sequence[int]):
    """Tokens that count how many of them were looked at."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        found = self.tokens[at]
        self.num_read += len(found) if isinstance(found, list) else 1
        return found


def test_a_long_prompt_is_taken_in_over_several_steps_and_found_in_the_end() -> None:
    tokens = Counted([*range(5 * READ_TOKENS), 1, 2, 3])
    drafter = NgramDrafter()
    found, num_tried = Proposal(0), 0
    while not found.num:
        num_tried += 1
        assert num_tried < 10
        tokens.num_read = 0
        found = drafter.propose(1, tokens, most=2)
        assert tokens.num_read < 7 * READ_TOKENS  # n-grams of three lengths
    assert (num_tried, list(found.tokens), found.grade) == (6, [4, 5], 3)
    tokens.tokens.append(4)
    tokens.num_read = 0
    assert list(drafter.propose(1, tokens, most=2).tokens) == [5, 6]
    assert tokens.num_read < 20
