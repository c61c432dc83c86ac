"""Conditions and their reasons: what `kubectl wait`, Argo CD, Flux and people read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sloserve_operator.api import Obj

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"


class Type(StrEnum):
    """The conditions of a service."""

    ACCEPTED = "Accepted"  # the spec can be carried out
    READY = "Ready"  # the current generation serves
    AVAILABLE = "Available"  # a request would be answered or held now
    PROGRESSING = "Progressing"  # a rollout or scaling is under way
    SLO_FEASIBLE = "SLOFeasible"  # an idle replica keeps every promise
    SLO_MET = "SLOMet"  # every class with traffic is at or above its objective
    CAPACITY_LIMITED = "CapacityLimited"  # more replicas are wanted than may be or fit
    MONITORING_READY = "MonitoringReady"  # monitors exist, or their kinds don't


class Why(StrEnum):
    """Every reason there is; docs/operator.md tells what to do about each."""

    ACCEPTED = "Accepted"
    REPLICAS_IGNORED = "ReplicasIgnored"
    INVALID_SPEC = "InvalidSpec"
    INVALID_POD_TEMPLATE = "InvalidPodTemplate"
    NAME_CONFLICT = "NameConflict"
    CACHE_NOT_SHARED = "CacheNotShared"
    REFUSED_BY_CLUSTER = "RefusedByCluster"
    CLEANING_UP = "CleaningUp"

    READY = "Ready"
    NOT_ACCEPTED = "NotAccepted"
    ROLLING_OUT = "RollingOut"
    REPLICAS_NOT_READY = "ReplicasNotReady"
    GATEWAYS_NOT_READY = "GatewaysNotReady"
    CONFIG_NOT_READ = "ConfigNotRead"
    GATEWAYS_UNREACHABLE = "GatewaysUnreachable"
    IDLE = "Idle"

    ANSWERING = "Answering"
    HOLDING = "Holding"
    NO_GATEWAY = "NoGateway"

    COMPLETE = "Complete"
    SCALING = "Scaling"
    LOADING = "Loading"
    UNSCHEDULABLE = "Unschedulable"
    LOAD_TIMEOUT = "LoadTimeout"
    SECRET_MISSING = "SecretMissing"
    CLAIM_MISSING = "ClaimMissing"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_REFUSED = "ContainerRefused"
    CRASHING = "Crashing"
    PODS_REFUSED = "PodsRefused"

    FEASIBLE = "Feasible"
    INFEASIBLE = "Infeasible"
    NO_REPORT = "NoReport"

    MET = "Met"
    MISSED = "Missed"
    NO_TRAFFIC = "NoTraffic"

    SUFFICIENT = "Sufficient"
    MAX_REPLICAS = "MaxReplicas"

    MONITOR_EXISTS = "MonitorExists"
    KIND_MISSING = "KindMissing"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; `message` is for people and says what to do where something is wrong."""

    type: Type
    status: str
    reason: Why
    message: str


def written(
    conditions: Sequence[Condition], *, previous: Sequence[Obj], generation: int, now: str
) -> list[Obj]:
    """
    The conditions as status holds them; `now` in RFC 3339.

    `lastTransitionTime` stays while the status of a condition stays. A condition that is not in
    `conditions` is kept as it was: nothing new is known of it.
    """
    before = {str(c["type"]): c for c in previous}
    told = {c.type.value for c in conditions}
    result = [
        dict(c) for c in previous if str(c["type"]) in set(Type) and str(c["type"]) not in told
    ]
    for condition in conditions:
        old = before.get(condition.type.value, {})
        same = old.get("status") == condition.status and old.get("lastTransitionTime")
        result.append(
            {
                "type": condition.type.value,
                "status": condition.status,
                "reason": condition.reason.value,
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if same else now,
            }
        )
    order = list(Type)
    return sorted(result, key=lambda c: order.index(Type(str(c["type"]))))


def find(status: Obj, condition: Type) -> Obj:
    """A condition of a status; an empty one when it is not there."""
    found = (c for c in status.get("conditions") or () if c.get("type") == condition.value)
    return dict(next(found, {}))


def phase(status: Obj) -> str:
    """What replicas that load are at, without the numbers in it; empty when none loads."""
    progressing = find(status, Type.PROGRESSING)
    if progressing.get("reason") != Why.LOADING.value:
        return ""
    return re.sub(r"[0-9.]+", "#", str(progressing["message"]))
