"""A report there and back: as metrics, as a header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.errors import BadInput
from sloserve.http import report
from sloserve.http.exporter import Exporter
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.wire import Frontier, Report

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12)
COUNTS = st.integers(0, 10**9)
TIMES = st.floats(0, 1e6, allow_nan=False)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    free, used = draw(COUNTS), draw(COUNTS)
    return Report(
        service=draw(NAMES),
        replica=draw(NAMES),
        state=draw(st.sampled_from(report.STATES)),
        frontier=draw(st.dictionaries(NAMES, st.builds(Frontier, COUNTS, COUNTS), max_size=4)),
        earliest_first_token_s=draw(st.dictionaries(NAMES, TIMES, max_size=4)),
        tightest_tpot_s=draw(TIMES),
        token_supply_per_s=draw(TIMES),
        free_blocks=free,
        total_blocks=free + used,
        num_running=draw(COUNTS),
        num_waiting=draw(COUNTS),
        waiting_prefill_tokens=draw(COUNTS),
        zero_load_fixed_s=draw(TIMES),
        zero_load_per_token_s=draw(TIMES),
        config_generation=draw(COUNTS),
    )


@given(reports())
def test_a_report_survives_prometheus_text(sent: Report) -> None:
    exporter = Exporter(REPLICA_EXPORTS)
    report.export(sent, exporter)
    assert report.parse(exporter.render(report.NAMES).decode()) == sent
    assert report.parse(exporter.render().decode()) == sent


@given(reports())
def test_a_report_survives_a_header(sent: Report) -> None:
    text = report.to_header(sent)
    assert text.isascii()
    assert "\n" not in text
    assert report.from_header(text) == sent


def test_a_class_that_went_away_is_no_longer_exported() -> None:
    exporter = Exporter(REPLICA_EXPORTS)
    first = Report("s", "r", "ready", {"a": Frontier(1, 2), "b": Frontier(1, 2)}, {"a": 1.0})
    report.export(first, exporter)
    report.export(Report("s", "r", "ready", {"b": Frontier(1, 2)}), exporter)
    again = report.parse(exporter.render(report.NAMES).decode())
    assert set(again.frontier) == {"b"}
    assert again.earliest_first_token_s == {}


@pytest.mark.parametrize("text", ["", "up 1\n", "sloserve_replica_info 1.0\n", "<html>"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not a replica's report"):
        report.parse(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"frontier": {"a": 1}}', '{"service": "s"}'])
def test_what_is_no_report_header_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not a report"):
        report.from_header(text)


def test_the_path_asks_for_the_report_s_names_only() -> None:
    assert report.PATH.startswith("/metrics?name%5B%5D=sloserve_replica_info&")
    assert "vllm" not in report.PATH
