"""Rules as data, in the shape of a Prometheus rules file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sloserve.rules.promql import duration

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus computes and keeps."""

    record: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> Json:
        """As a rules file has it."""
        return _given({"record": self.record, "expr": self.expr, "labels": dict(self.labels)})


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that somebody must look at; it has to hold for `for_s` seconds."""

    alert: str
    expr: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    for_s: float = 0.0

    def to_dict(self) -> Json:
        """As a rules file has it."""
        return _given(
            {
                "alert": self.alert,
                "expr": self.expr,
                "for": duration(self.for_s) if self.for_s else None,
                "labels": dict(self.labels),
                "annotations": dict(self.annotations),
            }
        )


Rule = Recording | Alert


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other, every `interval_s` seconds."""

    name: str
    rules: Sequence[Rule]
    interval_s: float

    def to_dict(self) -> Json:
        """As a rules file has it."""
        return {
            "name": self.name,
            "interval": duration(self.interval_s),
            "rules": [rule.to_dict() for rule in self.rules],
        }


def _given(mapping: Json) -> Json:
    return {key: value for key, value in mapping.items() if value not in (None, {})}
