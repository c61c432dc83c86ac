"""Prometheus text from declared metrics."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sloserve.http.exporter import Exporter
from sloserve.metrics import (
    EXPORTED,
    GATEWAY_EXPORTS,
    PREFIX,
    REPLICA_EXPORTS,
    Kind,
    Metric,
)

METRICS = (
    Metric("a_total", Kind.COUNTER, "A.", ("who",)),
    Metric("b", Kind.GAUGE, "B."),
    Metric("c_seconds", Kind.HISTOGRAM, "C.", ("who",), (0.1, 1.0)),
)


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(v for _, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_counters_gauges_and_histograms_come_out_as_prometheus_reads_them() -> None:
    exporter = Exporter(METRICS)
    exporter.add("a_total", "x")
    exporter.add("a_total", "x", amount=2)
    exporter.add("a_total", "zero", amount=0)
    exporter.set("b", value=1.5)
    for value in (0.1, 0.5, 3.0):
        exporter.observe("c_seconds", "x", value=value)
    exporter.observe("c_seconds", "x", value=0.5, times=2)
    found = samples(exporter.render())
    assert found["a_total", ("x",)] == 3
    assert found["a_total", ("zero",)] == 0
    assert found["b", ()] == 1.5
    assert found["c_seconds_bucket", ("0.1", "x")] == 1
    assert found["c_seconds_bucket", ("1.0", "x")] == 4
    assert found["c_seconds_bucket", ("+Inf", "x")] == 5
    assert found["c_seconds_count", ("x",)] == 5
    assert found["c_seconds_sum", ("x",)] == pytest.approx(4.6)


@given(st.lists(st.floats(-1, 5) | st.sampled_from([0.1, 1.0]), max_size=20))
def test_many_values_at_once_count_as_one_by_one(values: list[float]) -> None:
    at_once, one_by_one = Exporter(METRICS), Exporter(METRICS)
    at_once.observe_all("c_seconds", "x", values=values)
    one_by_one.observe("c_seconds", "x", value=0, times=0)
    for value in values:
        one_by_one.observe("c_seconds", "x", value=value)
    assert samples(at_once.render()) == pytest.approx(samples(one_by_one.render()))


def test_what_needs_no_label_is_there_at_zero_and_the_rest_when_it_is_named() -> None:
    exporter = Exporter(
        (
            Metric("d_total", Kind.COUNTER, "D."),
            Metric("e_seconds", Kind.HISTOGRAM, "E.", (), (1.0,)),
            *METRICS,
        )
    )
    found = samples(exporter.render())
    assert found["d_total", ()] == 0
    assert found["e_seconds_count", ()] == 0
    assert ("c_seconds_count", ("x",)) not in found
    exporter.observe("c_seconds", "x", value=0, times=0)
    assert samples(exporter.render())["c_seconds_count", ("x",)] == 0


def test_declared_metrics_have_the_series_names_that_come_out() -> None:
    exporter = Exporter(EXPORTED)
    for metric in EXPORTED:
        labels = ["x"] * len(metric.labels)
        if metric.kind is Kind.COUNTER:
            exporter.add(metric.name, *labels)
        elif metric.kind is Kind.GAUGE:
            exporter.set(metric.name, *labels, value=1)
        else:
            exporter.observe(metric.name, *labels, value=1)
    names = {name for metric in EXPORTED for name in metric.series_names}
    assert {name for name, _ in samples(exporter.render())} == names


def test_every_declared_metric_says_its_unit() -> None:
    assert all(metric.unit for metric in EXPORTED)
    with pytest.raises(LookupError, match="e_nothing"):
        Metric("e_nothing", Kind.GAUGE, "E.").unit  # noqa: B018


def test_a_name_filter_renders_those_and_refreshes_only_what_they_need() -> None:
    exporter = Exporter(METRICS)
    refreshed: list[str] = []
    exporter.refresh_before(["b"], lambda: refreshed.append("b"))
    exporter.refresh_before(["c_seconds"], lambda: refreshed.append("c"))
    exporter.add("a_total", "x")
    exporter.set("b", value=1)
    found = samples(exporter.render(["b", "unknown"]))
    assert found == {("b", ()): 1.0}
    assert refreshed == ["b"]
    exporter.render()
    assert refreshed == ["b", "b", "c"]


def test_what_is_not_declared_can_t_be_exported() -> None:
    exporter = Exporter(METRICS)
    with pytest.raises(KeyError):
        exporter.add("d_total")
    with pytest.raises(AssertionError):
        exporter.add("a_total")
    with pytest.raises(AssertionError):
        exporter.add("b")
    with pytest.raises(AssertionError):
        exporter.observe("b", value=1)
    with pytest.raises(AssertionError):
        exporter.observe_all("c_seconds", values=[1])


def test_label_values_are_escaped() -> None:
    exporter = Exporter(METRICS)
    exporter.add("a_total", 'q"uo\\te\n')
    assert samples(exporter.render())["a_total", ('q"uo\\te\n',)] == 1


@pytest.mark.parametrize("exports", [REPLICA_EXPORTS, GATEWAY_EXPORTS])
def test_the_declared_lists_make_exporters(exports: tuple[Metric, ...]) -> None:
    assert Exporter(exports).render()


def test_declared_names_follow_the_rules() -> None:
    names = [metric.name for metric in EXPORTED]
    assert len(names) == len(set(names))
    for metric in EXPORTED:
        assert metric.name.startswith((PREFIX, "vllm:"))
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets), metric.name
        assert list(metric.buckets) == sorted(metric.buckets), metric.name
        if metric.kind is Kind.COUNTER:
            assert metric.name.endswith("_total")
        assert metric.help.endswith(".")
