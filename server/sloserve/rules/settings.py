"""What whoever writes the rules may choose."""

from collections.abc import Mapping
from dataclasses import dataclass, field

RUNBOOK_URL = "docs/runbook.md"
"""Where it lies in the source tree: a copy that browsers reach has an address of its own."""


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """How rules are written; the defaults suit a Prometheus with 15 days of data."""

    namespace: str = ""
    """Kubernetes namespace of the service; its series are told apart by it. Empty: series have no
    such label (a plain Prometheus)."""
    runbook_url: str = RUNBOOK_URL
    """Where the runbook can be read, as `https://wiki.example/runbook`; the alert's name, in small
    letters, is the anchor of its entry."""
    slow_rungs: bool = True
    """Whether there are alerts over a day and more; a demo has no such days."""
    min_requests: int = 20
    """Fewer requests in a window say nothing."""
    min_missed: int = 5
    """Fewer missed requests in a window wake nobody, whatever share they are."""
    interval_s: float = 30.0
    """How often rules are evaluated, in seconds."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """More labels for every alert, as Alertmanager's routes want them."""
