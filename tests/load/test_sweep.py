import pytest

from sloserve.load.sweep import Search, crossing


def searched(capacity: float, *, start: float, tolerance: float = 0.02) -> Search:
    """A search against a service that holds everything up to `capacity`, then falls."""
    search = Search(start, tolerance=tolerance)
    while (rate := search.next_rate()) is not None:
        search.tell(rate, 1.0 if rate <= capacity else 0.9 * capacity / rate)
    return search


@pytest.mark.parametrize("start", [0.2, 1.0, 7.3, 300.0])
def test_the_search_finds_the_highest_rate_that_holds(start: float) -> None:
    search = searched(7.3, start=start)
    assert 7.3 / 1.02 <= search.rate <= 7.3
    assert search.confirmed
    assert search.found


def test_a_winner_that_does_not_hold_twice_is_dropped() -> None:
    search = Search(1.0, tolerance=0.2)
    seen: dict[float, int] = {}
    while (rate := search.next_rate()) is not None:
        seen[rate] = seen.get(rate, 0) + 1
        lucky = seen[rate] == 1 and rate < 4.5
        search.tell(rate, 0.92 if lucky or rate <= 2.0 else 0.7)
    assert search.rate <= 2.0
    assert search.confirmed


def test_a_service_that_never_holds_ends_the_search_without_a_rate() -> None:
    search = Search(1.0, max_windows=12)
    while (rate := search.next_rate()) is not None:
        search.tell(rate, 0.0)
    assert search.rate == 0.0
    assert not search.found


def test_the_crossing_is_read_off_straight_lines() -> None:
    assert crossing({1.0: 1.0, 2.0: 0.95, 4.0: 0.85}, 0.9) == pytest.approx(3.0)
    assert crossing({1.0: 1.0, 2.0: 0.95}, 0.9) is None
    assert crossing({1.0: 0.5}, 0.9) is None
