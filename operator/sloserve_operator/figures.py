"""The operator's own metrics, as Prometheus text."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sloserve.metrics import OPERATOR, Kind, Metric
from sloserve_operator.api import Obj
from sloserve_operator.conditions import Type

FROM_THE_START: dict[str, list[tuple[str, ...]]] = {
    "sloserve_operator_reconciles_total": [("unchanged",), ("changed",), ("failed",)],
    "sloserve_operator_writes_total": [("apply",), ("status",), ("delete",), ("event",)],
    "sloserve_operator_scalings_total": [
        (direction, constraint)
        for direction in ("up", "down")
        for constraint in ("TTFT", "TPOT", "KV", "Replicas", "None")
    ],
}
"""Counters that are there at 0, so that the first failure is an increase and no panel is blank."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """What is declared in `OPERATOR`, and nothing else."""

    def __init__(self, metrics: Iterable[Metric] = OPERATOR) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in metrics:
            about = (metric.name, metric.help, metric.labels)
            if metric.kind is Kind.COUNTER:
                self._counters[metric.name] = Counter(*about, registry=self._registry)
            elif metric.kind is Kind.GAUGE:
                self._gauges[metric.name] = Gauge(*about, registry=self._registry)
            else:
                self._histograms[metric.name] = Histogram(
                    *about, registry=self._registry, buckets=metric.buckets
                )

        for name, series in FROM_THE_START.items():
            for labels in series:
                self._counters[name].labels(*labels)

    def add(self, name: str, *labels: str) -> None:
        """Count one."""
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc()

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge."""
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(value)

    def observe(self, name: str, *, value: float) -> None:
        """One more observation of a histogram."""
        self._histograms[name].observe(value)

    def services(self, services: Iterable[Obj]) -> None:
        """How all services fare, from their status."""
        counts = {(t.value, s): 0 for t in Type for s in ("True", "False", "Unknown")}
        desired = ready = 0
        for service in services:
            status = service.get("status") or {}
            for condition in status.get("conditions") or ():
                told = condition["type"], condition["status"]
                if told in counts:
                    counts[told] += 1
            some, _, all_wanted = str(status.get("ready", "0/0")).partition("/")
            desired, ready = desired + int(all_wanted or 0), ready + int(some or 0)
        for (condition_name, state), count in counts.items():
            self.set("sloserve_operator_services", condition_name, state, value=count)
        self.set("sloserve_operator_replicas", "desired", value=desired)
        self.set("sloserve_operator_replicas", "ready", value=ready)

    def text(self) -> bytes:
        """Everything, rendered."""
        return generate_latest(self._registry)
