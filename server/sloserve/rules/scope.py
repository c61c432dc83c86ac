"""Whose series a rule reads, and which labels and annotations its alerts carry."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sloserve.rules.ladder import Severity
from sloserve.rules.promql import duration, selector
from sloserve.rules.rule import Alert
from sloserve.rules.settings import RuleSettings

EVERY_CLASS = "all"
"""The label `slo_class` of an alert that is about no single class."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One service, or one class of it, under some settings."""

    settings: RuleSettings
    service: str
    slo_class: str = ""
    dashboard: str = "sloserve-slo"
    series: Mapping[str, str] = field(init=False)
    """Matchers of its series."""

    def __post_init__(self) -> None:
        matchers = {
            "namespace": self.settings.namespace,
            "service": self.service,
            "slo_class": self.slo_class,
        }
        object.__setattr__(self, "series", {k: v for k, v in matchers.items() if v})

    def select(self, name: str, /, **more: str) -> str:
        """Its series of `name`."""
        return selector(name, **self.series, **more)

    def alert(
        self,
        name: str,
        expr: str,
        *,
        severity: Severity,
        summary: str,
        description: str,
        constraint: str,
        for_s: float = 0.0,
        labels: Mapping[str, str] | None = None,
    ) -> Alert:
        """
        An alert that says whose it is, how bad, what binds (`constraint`) and what to do.

        `constraint` is TTFT, TPOT, KV, Replicas, None, or a template that finds it.
        """
        return Alert(
            alert=name,
            expr=expr,
            for_s=for_s,
            labels={
                **self.series,
                "slo_class": self.slo_class or EVERY_CLASS,
                "severity": severity.value,
                **(labels or {}),
                **self.settings.labels,
            },
            annotations={
                "summary": summary,
                "description": description,
                "constraint": constraint,
                "runbook_url": f"{self.settings.runbook_url}#{name.lower()}",
                "dashboard": f"/d/{self.dashboard}?var-service={self.service}",
            },
        )


def commonest_reason(counters: str, window_s: float) -> str:
    """
    A template for an annotation: the `reason` that grew most in the window, or None.

    Prometheus fills it in when the alert fires; it is no label, as it may change while it does.
    """
    query = f"topk(1, sum by (reason) (increase({counters}[{duration(window_s)}])) > 0)"
    found = '{{ . | first | label "reason" }}'
    return f"{{{{ with query `{query}` }}}}{found}{{{{ else }}}}None{{{{ end }}}}"
