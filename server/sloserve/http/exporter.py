"""
The metrics of one process, in Prometheus text.

Built from the declared list (`sloserve.metrics`), so nothing can be exported that is not
declared. Recording is a dictionary update: it may happen per token. One thread records (the
event loop); any thread may render.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from sloserve.metrics import Kind, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Tally:
    """A histogram's counts (one more than edges: above the last) and its sum."""

    __slots__ = ("counts", "total")

    def __init__(self, num_edges: int) -> None:
        self.counts = [0] * (num_edges + 1)
        self.total = 0.0


class _Series(Collector):
    """All series of one declared metric."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.edges = metric.buckets
        self.values: dict[tuple[str, ...], float] = {}
        self.tallies: dict[tuple[str, ...], _Tally] = {}

    def start(self) -> None:
        """Let the one series of a counter or histogram without labels exist at 0."""
        if self.metric.kind is Kind.COUNTER:
            self.values[()] = 0.0
        elif self.metric.kind is Kind.HISTOGRAM:
            self.tallies[()] = _Tally(len(self.edges))

    def describe(self) -> Iterator[Family]:
        yield self._empty()

    def collect(self) -> Iterator[Family]:
        family = self._empty()
        if isinstance(family, HistogramMetricFamily):
            edges = [*map(str, self.edges), "+Inf"]
            for labels, tally in list(self.tallies.items()):
                running, buckets = 0, []
                for edge, count in zip(edges, tally.counts, strict=True):
                    running += count
                    buckets.append((edge, float(running)))
                family.add_metric(labels, buckets, tally.total)
        else:
            for labels, value in list(self.values.items()):
                family.add_metric(labels, value)
        yield family

    def _empty(self) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
        name, text, labels = self.metric.name, self.metric.help, self.metric.labels
        match self.metric.kind:
            case Kind.COUNTER:
                return CounterMetricFamily(name, text, labels=labels)
            case Kind.GAUGE:
                return GaugeMetricFamily(name, text, labels=labels)
            case Kind.HISTOGRAM:
                return HistogramMetricFamily(name, text, labels=labels)


class Exporter:
    """The series of one process; labels are given in the declared order."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[str, _Series] = {}
        self._refreshes: list[tuple[frozenset[str], Callable[[], None]]] = []
        for metric in metrics:
            series = self._series[metric.name] = _Series(metric)
            self._registry.register(series)
            if not metric.labels:
                series.start()

    def add(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Count `amount` more; with amount 0 the series appears at 0."""
        values = self._of(name, Kind.COUNTER, labels).values
        values[labels] = values.get(labels, 0.0) + amount

    def total(self, name: str, *labels: str, value: float) -> None:
        """Set a counter that is counted elsewhere (the engine's own totals)."""
        self._of(name, Kind.COUNTER, labels).values[labels] = value

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge."""
        self._of(name, Kind.GAUGE, labels).values[labels] = value

    def observe(self, name: str, *labels: str, value: float, times: int = 1) -> None:
        """Put `value` into a histogram, `times` times; with 0 times the series appears at 0."""
        series = self._series[name]
        tally = series.tallies.get(labels) or self._new_tally(name, labels)
        tally.counts[bisect_left(series.edges, value)] += times
        tally.total += value * times

    def _new_tally(self, name: str, labels: tuple[str, ...]) -> _Tally:
        series = self._of(name, Kind.HISTOGRAM, labels)
        tally = series.tallies[labels] = _Tally(len(series.edges))
        return tally

    def observe_all(self, name: str, *labels: str, values: Sequence[float]) -> None:
        """Put many values into a histogram; one search per bucket, not one per value."""
        series, ranked, num_below = self._series[name], sorted(values), 0
        tally = series.tallies.get(labels) or self._new_tally(name, labels)
        for i, edge in enumerate(series.edges):
            num_within = bisect_right(ranked, edge, num_below)
            tally.counts[i] += num_within - num_below
            num_below = num_within
            if num_below == len(ranked):
                break
        tally.counts[-1] += len(ranked) - num_below
        tally.total += sum(ranked)

    def clear(self, name: str) -> None:
        """Forget every series of a gauge (before setting those that still exist)."""
        self._series[name].values.clear()

    def value(self, name: str, *labels: str) -> float:
        """The value of a counter or gauge now; 0 when it was never set."""
        return self._series[name].values.get(labels, 0.0)

    def refresh_before(self, names: Iterable[str], refresh: Callable[[], None]) -> None:
        """Call `refresh` before any of `names` is rendered."""
        self._refreshes.append((frozenset(names), refresh))

    def render(self, names: Sequence[str] = ()) -> bytes:
        """Prometheus text; with `names`, of those families only, and the rest is not touched."""
        wanted = frozenset(names)
        for provided, refresh in self._refreshes:
            if not wanted or wanted & provided:
                refresh()
        if not wanted:
            return generate_latest(self._registry)
        return generate_latest(_Some([s for n, s in self._series.items() if n in wanted]))

    def _of(self, name: str, kind: Kind, labels: tuple[str, ...]) -> _Series:
        series = self._series[name]
        assert series.metric.kind is kind, f"{name} is a {series.metric.kind}, not a {kind}"
        assert len(labels) == len(series.metric.labels), f"{name} wants {series.metric.labels}"
        return series


class _Some(CollectorRegistry):
    """A registry over a few of the series."""

    def __init__(self, series: Sequence[_Series]) -> None:
        super().__init__()
        self._some = series

    def collect(self) -> Iterator[Family]:
        for series in self._some:
            yield from series.collect()
