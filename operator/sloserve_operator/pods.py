"""What keeps a pod from serving, read from the pod and its Events."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.conditions import Why

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_REFUSED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_ORDER = (
    Why.SECRET_MISSING,
    Why.CLAIM_MISSING,
    Why.IMAGE_PULL_FAILED,
    Why.CONTAINER_REFUSED,
    Why.CRASHING,
    Why.LOAD_TIMEOUT,
    Why.UNSCHEDULABLE,
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not serve, and what to do."""

    reason: Why
    message: str


def ready(pod: Obj) -> bool:
    """Whether the pod takes requests and is to stay."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return is_ready and not leaving(pod)


def leaving(pod: Obj) -> bool:
    """Whether it is being deleted, or over."""
    phase = (pod.get("status") or {}).get("phase")
    return "deletionTimestamp" in pod["metadata"] or phase in ("Succeeded", "Failed")


def restarts(pod: Obj) -> int:
    """How often its containers were restarted: a counter of its processes."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return sum(int(s.get("restartCount", 0)) for s in statuses)


def stuck(pod: Obj) -> bool:
    """Whether only the pod's Events can tell what it waits for (volumes that don't mount)."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    waits = [s.get("state", {}).get("waiting", {}).get("reason") for s in statuses]
    return not leaving(pod) and any(w in ("ContainerCreating", "PodInitializing") for w in waits)


def worst(pods: Sequence[Obj], notes: Sequence[Obj]) -> Trouble | None:
    """The trouble of these pods that explains most; `notes` are Events of pods."""
    found = [t for pod in pods if not leaving(pod) and (t := trouble(pod, notes)) is not None]
    return min(found, key=lambda t: _ORDER.index(t.reason), default=None)


def trouble(pod: Obj, notes: Sequence[Obj] = ()) -> Trouble | None:
    """Why this pod does not start; None when it does, or merely needs time."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return _unschedulable(name, str(condition.get("message", "")))
    for container in status.get("containerStatuses") or ():
        found = _container(pod, container)
        if found is not None:
            return found
    uid = pod["metadata"].get("uid")
    for note in notes:
        involved = note.get("involvedObject") or {}
        if involved.get("uid") == uid and note.get("reason") in (
            "FailedMount",
            "FailedAttachVolume",
        ):
            text = str(note.get("message", ""))
            if match := re.search(r'secret "([^"]+)" not found', text):
                return Trouble(Why.SECRET_MISSING, _secret(match[1]))
            return Trouble(Why.CONTAINER_REFUSED, f"pod {name}: {_short(text)}")
    return None


def _unschedulable(pod: str, text: str) -> Trouble:
    if match := re.search(r'persistentvolumeclaim "([^"]+)" not found', text):
        return Trouble(
            Why.CLAIM_MISSING, f"the PersistentVolumeClaim {match[1]!r} does not exist; create it"
        )
    return Trouble(
        Why.UNSCHEDULABLE,
        f"no node takes pod {pod}: {_short(text)}; free or add nodes, lower engine.resources, or "
        "for a rollout where GPUs are full set engine.rollout to maxSurge 0, maxUnavailable 1",
    )


def _container(whole: Obj, status: Obj) -> Trouble | None:
    pod = whole["metadata"]["name"]
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason, text = str(waiting.get("reason", "")), _short(str(waiting.get("message", "")))
    if reason in _PULL:
        return Trouble(
            Why.IMAGE_PULL_FAILED,
            f"pod {pod} can't pull {status.get('image')}: {text or reason}; check the image's name "
            "and engine.image.pullSecrets",
        )
    if reason in _REFUSED:
        if match := re.search(r'secret "?([^" ]+)"? not found', text):
            return Trouble(Why.SECRET_MISSING, _secret(match[1]))
        if match := re.search(r"couldn't find key (\S+) in Secret (\S+)", text):
            return Trouble(
                Why.SECRET_MISSING, f"the Secret {match[2]} has no key {match[1]}; add it"
            )
        return Trouble(Why.CONTAINER_REFUSED, f"pod {pod}: {text or reason}")
    ended = (status.get("lastState") or {}).get("terminated") or {}
    if not ended or status.get("ready"):
        return None
    code, told = ended.get("exitCode"), _last_line(str(ended.get("message", "")))
    if code == 0 and not status.get("started"):
        return _ended_well(whole, str(status.get("name")), ended, told)
    if reason == "CrashLoopBackOff" or code:
        why = f"{ended.get('reason', 'Error')} (exit code {code})"
        return Trouble(Why.CRASHING, f"pod {pod} ended with {why}{f': {told}' if told else ''}")
    return None


def _ended_well(whole: Obj, container: str, ended: Obj, told: str) -> Trouble:
    """
    It ended with exit code 0 and starts again. After the time that its startup probe allows the
    probe did it; before that something else.
    """
    pod, ran_s = whole["metadata"]["name"], _ran_s(ended)
    patience_s = _startup_s(whole, container)
    if ran_s is not None and patience_s is not None and ran_s < patience_s:
        return Trouble(
            Why.CRASHING,
            f"pod {pod} ended with exit code 0 after {ran_s:.0f} s: by itself, or its liveness "
            f"probe told it to{f' (last line: {told})' if told else ''}; see "
            f"kubectl logs {pod} --previous and kubectl describe pod {pod}",
        )
    is_replica = container == names.REPLICA
    late = "not ready in model.loadTimeout (raise it)" if is_replica else "not up in time"
    return Trouble(
        Why.LOAD_TIMEOUT,
        f"pod {pod} was ended by its probes and starts again: it was {late}, or stood still; see "
        f"kubectl logs {pod} --previous",
    )


def _ran_s(ended: Obj) -> float | None:
    """Seconds between start and end of a container; None when they are not told."""
    try:
        start, end = (datetime.fromisoformat(ended[at]) for at in ("startedAt", "finishedAt"))
    except (KeyError, TypeError, ValueError):
        return None
    return (end - start).total_seconds()


def _startup_s(whole: Obj, container: str) -> float | None:
    """The least seconds after which a container's startup probe ends it; None without one."""
    for declared in (whole.get("spec") or {}).get("containers") or ():
        probe = declared.get("startupProbe")
        if declared.get("name") == container and probe:
            return float((probe.get("failureThreshold", 3) - 1) * probe.get("periodSeconds", 10))
    return None


def _secret(name: str) -> str:
    return (
        f"the Secret {name!r} does not exist in this namespace; create it, pods go on by themselves"
    )


def _short(text: str) -> str:
    return " ".join(text.split())[:400]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else ""
