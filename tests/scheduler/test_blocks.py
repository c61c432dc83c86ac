"""Paged KV accounting: ownership, sharing by hash, and what is forgotten first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.scheduler import BlockPool
from sloserve.scheduler.prefix import extend_chain


def chain(tokens: list[int], *, salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    extend_chain(hashes, tokens, num_tokens=len(tokens), block_size=4, salt=salt)
    return hashes


def filled(pool: BlockPool, tokens: list[int]) -> list[int]:
    hashes = chain(tokens)
    blocks = pool.allocate(len(hashes))
    assert blocks is not None
    for block, digest in zip(blocks, hashes, strict=True):
        pool.publish(block, digest)
    return blocks


def test_too_few_blocks_gives_none_and_takes_none() -> None:
    pool = BlockPool(3, block_size=4)
    assert pool.allocate(4) is None
    assert pool.num_free == 3
    assert len(pool.allocate(3) or []) == 3
    pool.check_integrity()


def test_a_released_prefix_is_found_again_and_counts_as_free() -> None:
    pool = BlockPool(8, block_size=4)
    blocks = filled(pool, list(range(12)))
    pool.release(blocks)
    assert pool.num_free == 8
    assert pool.match(chain(list(range(12)))) == blocks
    pool.share(blocks)
    assert pool.num_free == 5
    pool.check_integrity([blocks])


def test_two_owners_of_a_prefix_must_both_release_it() -> None:
    pool = BlockPool(4, block_size=4)
    blocks = filled(pool, list(range(8)))
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_free == 2
    pool.release(blocks)
    assert pool.num_free == 4
    pool.check_integrity([])


def test_the_longest_unused_prefix_is_forgotten_first_from_its_tail() -> None:
    pool = BlockPool(4, block_size=4)
    old = filled(pool, [1] * 8)
    new = filled(pool, [2] * 8)
    pool.release(old)
    pool.release(new)
    pool.allocate(1)
    assert pool.match(chain([1] * 8)) == old[:1]
    assert pool.match(chain([2] * 8)) == new
    assert pool.num_evictions == 1
    pool.check_integrity()


def test_using_a_prefix_makes_it_young_again() -> None:
    pool = BlockPool(4, block_size=4)
    first, second = filled(pool, [1] * 8), filled(pool, [2] * 8)
    pool.release(first)
    pool.release(second)
    pool.share(first)
    pool.release(first)
    pool.allocate(2)
    assert pool.match(chain([1] * 8)) == first
    assert pool.match(chain([2] * 8)) == []


def test_only_full_blocks_have_a_hash() -> None:
    assert len(chain([1, 2, 3])) == 0
    assert len(chain([1, 2, 3, 4, 5])) == 1


@given(st.lists(st.integers(0, 3), max_size=24), st.lists(st.integers(0, 3), max_size=24))
def test_equal_hashes_mean_equal_tokens_from_the_start(one: list[int], two: list[int]) -> None:
    for i, (a, b) in enumerate(zip(chain(one), chain(two), strict=False)):
        assert (a == b) == (one[: 4 * i + 4] == two[: 4 * i + 4])


@given(st.lists(st.integers(0, 2**40), max_size=40), st.integers(0, 40))
def test_a_chain_grown_in_pieces_is_the_chain_made_at_once(tokens: list[int], cut: int) -> None:
    cut = min(cut, len(tokens))
    grown: list[bytes] = []
    extend_chain(grown, tokens, num_tokens=cut, block_size=4, salt="s")
    extend_chain(grown, tokens, num_tokens=len(tokens), block_size=4, salt="s")
    assert grown == chain(tokens, salt="s")


def test_another_salt_is_another_prefix() -> None:
    assert chain([1] * 8, salt="a") != chain([1] * 8, salt="b")


def test_the_integrity_check_sees_a_lost_block_and_a_wrong_count() -> None:
    pool = BlockPool(4, block_size=4)
    taken = pool.allocate(2)
    assert taken is not None
    with pytest.raises(AssertionError, match="differ"):
        pool.check_integrity([taken[:1]])
    pool._free.pop()
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity()


def test_a_block_released_twice_is_noticed() -> None:
    pool = BlockPool(4, block_size=4)
    taken = pool.allocate(1)
    assert taken is not None
    pool.release(taken)
    pool.release(taken)
    with pytest.raises(AssertionError):
        pool.check_integrity()
