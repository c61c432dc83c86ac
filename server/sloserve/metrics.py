"""
Every metric this project exports: name, kind, unit, labels, help. Data only.

Exporters, dashboards, rules, routing and docs read this list; names are frozen once shipped.
"""

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "sloserve_"


class Kind(StrEnum):
    """The Prometheus type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; a counter's name ends in `_total`, a time's in `_seconds`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
