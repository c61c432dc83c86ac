"""
Where the time from `kubectl apply` to the first answer went, by what the cluster wrote down.

Kubernetes stamps whole seconds, so each part is right to about a second.
"""

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from e2e.harness.kubectl import Obj
from e2e.harness.service import Service

PARTS = (
    ("operator", "from the service to its replica's pod"),
    ("schedule", "until a node was chosen"),
    ("sandbox", "volumes and network"),
    ("image", "until the image was on the node"),
    ("start", "until the container ran"),
    ("load", "until the model was loaded, measured and had answered itself"),
    ("ready", "until the service was Ready"),
    ("answer", "until the first answer from outside"),
)
RESOLUTION_S = 1.0


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds of each part, in order; their sum is the whole way."""

    parts_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """From `kubectl apply` to the first answer."""
        return sum(self.parts_s)

    def table(self, title: str) -> str:
        """As Markdown."""
        lines = [title, "", "| part | what | seconds |", "| --- | --- | --- |"]
        for (part, what), seconds in zip(PARTS, self.parts_s, strict=True):
            lines.append(f"| {part} | {what} | {seconds:.0f} |")
        lines.append(f"| all | from apply to the first answer | {self.total_s:.0f} |")
        return "\n".join(lines)


def startup_of(service: Service, *, answered: datetime) -> Startup:
    """
    How a service with one replica came up; `answered` is when the first answer was there.

    AssertionError when the cluster's stamps are out of order, or one is missing.
    """
    (pod,) = service.pods("replica")
    (container,) = pod["status"]["containerStatuses"]
    stamps = [
        _time(service.object()["metadata"]["creationTimestamp"]),
        _time(pod["metadata"]["creationTimestamp"]),
        _turned(pod["status"], "PodScheduled"),
        _turned(pod["status"], "PodReadyToStartContainers", otherwise="PodScheduled"),
        _pulled(service, pod),
        _time(container["state"]["running"]["startedAt"]),
        _turned(pod["status"], "Ready"),
        _turned(service.status(), "Ready"),
        answered,
    ]
    parts_s = tuple((b - a).total_seconds() for a, b in pairwise(stamps))
    assert min(parts_s) >= -RESOLUTION_S, f"the stamps are out of order: {stamps}"
    return Startup(parts_s)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _turned(status: Obj, kind: str, *, otherwise: str | None = None) -> datetime:
    """When a condition became true; that of `otherwise` on a cluster without the condition."""
    true = {c["type"]: c for c in status["conditions"] if c["status"] == "True"}
    found = true.get(kind) or true.get(otherwise or "")
    assert found, f"no condition {kind}: {status['conditions']}"
    return _time(found["lastTransitionTime"])


def _pulled(service: Service, pod: Obj) -> datetime:
    """When the kubelet had the image."""
    selector = f"involvedObject.uid={pod['metadata']['uid']},reason=Pulled"
    events: list[dict[str, Any]] = service.kubectl.events(selector)
    assert events, "the kubelet told nothing of the image"
    return max(_time(event["lastTimestamp"]) for event in events)
