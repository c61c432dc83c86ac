"""Which Events a person would ask about: changes of conditions and of the replicas."""

from collections.abc import Mapping
from dataclasses import dataclass

from sloserve_operator.api import Obj
from sloserve_operator.autoscale import Scaling
from sloserve_operator.conditions import FALSE, TRUE, Type, Why, find, phase

NORMAL, WARNING = "Normal", "Warning"
_GOOD = {
    Type.ACCEPTED: TRUE,
    Type.READY: TRUE,
    Type.AVAILABLE: TRUE,
    Type.SLO_FEASIBLE: TRUE,
    Type.SLO_MET: TRUE,
    Type.CAPACITY_LIMITED: FALSE,
    Type.MONITORING_READY: TRUE,
}
_QUIET = (Why.NO_TRAFFIC, Why.NO_REPORT, Why.NOT_ACCEPTED, Why.COMPLETE)


@dataclass(frozen=True, slots=True)
class Notice:
    """One Event to post."""

    kind: str
    """Normal or Warning."""
    reason: str
    message: str


def notices(
    previous: Obj,
    status: Obj,
    *,
    told: Mapping[str, str],
    scaling: Scaling | None,
    replicas_before: int | None,
) -> tuple[tuple[Notice, ...], Mapping[str, str]]:
    """The Events for what changed between two statuses, and what has been told by now."""
    found: list[Notice] = []
    now_told = dict(told)
    for condition in Type:
        before, after = find(previous, condition), find(status, condition)
        mark = f"{after.get('status')}/{after.get('reason')}"
        same = f"{before.get('status')}/{before.get('reason')}" == mark
        if not after or same or now_told.get(condition.value) == mark:
            continue
        now_told[condition.value] = mark
        if (notice := _of_condition(condition, after, first=not before)) is not None:
            found.append(notice)
    if (now_at := phase(status)) != now_told.get("phase", ""):
        now_told["phase"] = now_at
        if now_at and not any(notice.reason == Why.LOADING for notice in found):
            loading = find(status, Type.PROGRESSING)
            found.append(Notice(NORMAL, Why.LOADING.value, str(loading["message"])))
    if scaling is not None and replicas_before not in (None, scaling.replicas):
        mark = f"{replicas_before}->{scaling.replicas}"
        if now_told.get("scale") != mark:
            now_told["scale"] = mark
            text = f"replicas {replicas_before} -> {scaling.replicas}: {scaling.why}"
            found.append(Notice(NORMAL, "Scaled", text))
    elif scaling is not None:
        now_told.pop("scale", None)
    return tuple(found), now_told


def _of_condition(condition: Type, after: Obj, *, first: bool) -> Notice | None:
    reason = Why(after["reason"])
    if reason in _QUIET:
        return None
    if condition is Type.PROGRESSING:
        kind = NORMAL if after["status"] == TRUE else WARNING
        return Notice(kind, reason.value, str(after["message"]))
    good = after["status"] == _GOOD[condition]
    if good and first and condition is not Type.READY:
        return None  # what was never wrong needs no Event
    warns = not good and condition in (
        Type.ACCEPTED, Type.SLO_FEASIBLE, Type.SLO_MET, Type.CAPACITY_LIMITED
    )  # fmt: skip
    return Notice(WARNING if warns else NORMAL, reason.value, str(after["message"]))
