"""The projected peak of KV blocks."""

from hypothesis import given
from hypothesis import strategies as st

from sloserve.planner.memory import Fit, Holder, Totals, fit, peak_tokens


def fits(holders: list[Holder], *, num_blocks: int, z: float) -> Fit:
    nobody = Totals(0.0, 0.0, 0)
    return fit(nobody, holders, lambda: holders, num_blocks=num_blocks, block_size=16, z=z)


def test_slack_means_that_even_the_whole_lives_fit() -> None:
    holders = [Holder(100, 50.0, 0.0), Holder(200, 20.0, 0.0)]
    assert fits(holders, num_blocks=30, z=1.0) == (True, True)


def test_evenly_aged_holders_need_less_than_their_whole_lives() -> None:
    holders = [Holder(100 + age, 100.0 - age, 0.0) for age in range(0, 100, 10)]
    whole = sum(h.tokens + h.left for h in holders)
    peak = peak_tokens(holders)
    assert peak < 0.85 * whole
    result = fits(holders, num_blocks=int(peak) // 16 + 12, z=0.0)
    assert result == (True, False)


def test_an_unknown_length_counts_for_more_than_a_known_one() -> None:
    known = [Holder(100, 100.0, 0.0)] * 4
    unknown = [Holder(100, 100.0, 10_000.0)] * 4
    assert fits(known, num_blocks=56, z=1.0).fits
    assert not fits(unknown, num_blocks=56, z=1.0).fits


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 60)), min_size=1, max_size=12))
def test_the_lock_step_peak_is_what_stepping_finds(pairs: list[tuple[int, int]]) -> None:
    holders = [Holder(tokens, float(left), 0.0) for tokens, left in pairs]
    by_stepping = max(
        sum(tokens + step for tokens, left in pairs if left >= step) for step in range(62)
    )
    assert abs(peak_tokens(holders) - by_stepping) < 1e-6
