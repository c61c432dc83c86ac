"""Durations and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.errors import BadInput
from sloserve.slo import format_duration, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("100ms", 0.1),
        ("0.5s", 0.5),
        ("2s", 2),
        ("1m30s", 90),
        ("1h", 3600),
        ("1h2m3s4ms", 3723.004),
        ("1.5h", 5400),
        ("0s", 0),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, field="x") == seconds


def test_days_are_known_where_they_are_allowed() -> None:
    assert parse_duration("7d", field="x", days=True) == 7 * 86400
    with pytest.raises(BadInput, match="'7d' is not a duration"):
        parse_duration("7d", field="x")


@pytest.mark.parametrize(
    "text", ["", "5", "5 s", "-5s", "s", "5sec", "1e3s", "5S", "٣s", None, True]
)
def test_what_has_no_unit_or_no_sense_is_refused(text: object) -> None:
    with pytest.raises(BadInput, match="is not a duration") as refusal:
        parse_duration(text, field="spec.drain.timeout")
    assert refusal.value.field == "spec.drain.timeout"


def test_a_number_without_a_unit_is_asked_about() -> None:
    with pytest.raises(BadInput, match=r"is it 5ms or 5s\?"):
        parse_duration(5, field="x")


@given(st.integers(0, 10**12))
def test_what_is_written_is_read_back_exactly(microseconds: int) -> None:
    seconds = microseconds / 1_000_000
    assert parse_duration(format_duration(seconds), field="x") == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "500ms"), (90, "90s"), (300, "5m"), (0.0625, "62.5ms")]
)
def test_a_duration_is_written_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("512Mi", 2**29), (1024, 1024), ("1.5Gi", 3 * 2**29), ("2G", 2 * 10**9)]
)
def test_a_size_is_read_as_bytes(text: object, num_bytes: int) -> None:
    assert parse_size(text, field="x") == num_bytes


@pytest.mark.parametrize("text", ["", "8 Gi", "8GB", -1, None, True, "inf"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(BadInput, match="is not a size"):
        parse_size(text, field="x")
