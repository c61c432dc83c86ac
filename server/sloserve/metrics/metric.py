"""What a metric is, and the bucket edges that several of them share."""

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "sloserve_"


class Kind(StrEnum):
    """The Prometheus type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


# How a name (less `_total`) ends, and what its numbers are. The longest ending that fits rules.
_UNITS = {
    "seconds": "seconds",
    "tokens": "tokens",
    "tokens_per_second": "tokens per second",
    "supply_per_second": "tokens per second",
    "blocks": "blocks",
    "requests": "requests",
    "attained": "requests",
    "missed": "requests",
    "pending": "requests",
    "inflight": "requests",
    "running": "requests",
    "waiting": "requests",
    "success": "requests",
    "ratio": "ratio",
    "perc": "ratio",
    "hops": "replicas",
    "replicas": "replicas",
    "devices": "devices",
    "services": "services",
    "reconciles": "reconciles",
    "writes": "writes",
    "scalings": "decisions",
    "preemptions": "preemptions",
    "queue_length": "services",
    "cache_queries": "tokens",
    "cache_hits": "tokens",
    "generation": "generation",
    "state": "0 or 1",
    "leader": "0 or 1",
    "off": "0 or 1",
    "info": "always 1",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; a counter's name ends in `_total`, a time's in `_seconds`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """What its numbers count; the name says it. Raises LookupError when it does not."""
        stem = self.name.removesuffix("_total")
        fits = [end for end in _UNITS if stem.endswith(("_" + end, ":" + end))]
        if not fits:
            raise LookupError(f"{self.name} does not end in a unit that is known")
        return _UNITS[max(fits, key=len)]

    @property
    def series_names(self) -> tuple[str, ...]:
        """
        The names its samples have in Prometheus.

        A histogram of values that may be negative has neither sum nor count: rate() would take
        a falling sum for a restart.
        """
        if self.kind is not Kind.HISTOGRAM:
            return (self.name,)
        buckets = f"{self.name}_bucket"
        return (
            (buckets,)
            if self.buckets[0] < 0
            else (buckets, f"{self.name}_sum", f"{self.name}_count")
        )


# Bucket edges, in seconds unless said. The first three are those that existing boards expect.
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TPOT_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKEN_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0,
                 8192.0, 16384.0)  # fmt: skip
LENGTH_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0,
                  10000.0, 20000.0, 50000.0, 100000.0)  # fmt: skip
STEP_BUCKETS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12,
                0.16, 0.25, 0.5, 1.0, 2.5)  # fmt: skip
RATIO_BUCKETS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0)
SLACK_BUCKETS = (-10.0, -2.5, -1.0, -0.5, -0.1, -0.05, -0.01, 0.0, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5,
                 10.0, 60.0)  # fmt: skip
SHORT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                 1.0)  # fmt: skip
HOP_BUCKETS = (1.0, 2.0, 3.0, 4.0)
RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
