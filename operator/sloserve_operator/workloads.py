"""How far the rollout of a Deployment is."""

from dataclasses import dataclass

from sloserve_operator.api import Obj


@dataclass(frozen=True, slots=True)
class Rollout:
    """The state of one Deployment against what is wanted of it."""

    wanted: int
    existing: int = 0
    updated: int = 0
    ready: int = 0
    seen: bool = False
    """The controller has looked at the latest template."""
    overdue: bool = False
    """It made no progress for longer than its deadline."""
    refused: str = ""
    """Why pods can't even be created (quota, Pod Security)."""

    @property
    def rolled(self) -> bool:
        """Every pod is of the latest template, and no old one is left."""
        return self.seen and self.updated == self.existing

    @property
    def complete(self) -> bool:
        """As many as wanted, all of the latest template, all ready."""
        return self.rolled and self.existing == self.wanted == self.ready


def rollout(live: Obj | None, *, wanted: int) -> Rollout:
    """The state of `live`; nothing yet when it does not exist."""
    if live is None:
        return Rollout(wanted)
    status = live.get("status") or {}
    conditions = {str(c["type"]): c for c in status.get("conditions") or ()}
    failure = conditions.get("ReplicaFailure", {})
    progress = conditions.get("Progressing", {})
    current = status.get("observedGeneration", 0) >= live["metadata"].get("generation", 0)
    return Rollout(
        wanted=wanted,
        existing=int(status.get("replicas", 0)),
        updated=int(status.get("updatedReplicas", 0)),
        ready=int(status.get("readyReplicas", 0)),
        seen=current and int((live.get("spec") or {}).get("replicas", 1)) == wanted,
        overdue=progress.get("reason") == "ProgressDeadlineExceeded",
        refused=str(failure.get("message", "")) if failure.get("status") == "True" else "",
    )
