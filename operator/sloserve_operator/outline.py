"""What is kept of objects that were heard: whole ones are most of an operator's memory."""

import sys
from collections.abc import Mapping

from sloserve_operator.api import POD, Obj

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def lean(obj: Obj) -> Obj:
    """
    The object without what no decision reads; `obj` itself stays as it is.

    Who owns which field, and what kubectl applied last, are half of an object; of a pod's spec
    only the startup probes of its containers matter.
    """
    meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    if LAST_APPLIED in (meta.get("annotations") or {}):
        told = meta["annotations"].items()
        meta["annotations"] = {name: value for name, value in told if name != LAST_APPLIED}
    made = {**obj, "metadata": meta}
    if obj.get("kind") == POD.kind and obj.get("spec"):
        made["spec"] = {"containers": [_probed(c) for c in obj["spec"].get("containers") or ()]}
    return made


def _probed(container: Obj) -> Obj:
    return {name: container[name] for name in ("name", "startupProbe") if name in container}


def outline(live: Obj, wanted: Obj) -> Obj:
    """
    What is kept of a child that was found to be as wanted: its metadata, and of a Deployment how
    many replicas it has and how far they are. What both have alike is kept once.
    """
    kept: Obj = {name: live[name] for name in ("apiVersion", "kind")}
    kept["metadata"] = _shared(live["metadata"], wanted["metadata"])
    if "replicas" in (live.get("spec") or {}):
        kept["spec"] = {"replicas": live["spec"]["replicas"]}
        kept["status"] = _shared(live.get("status") or {}, {})
    return kept


def _shared(live: Obj, wanted: Mapping[str, object]) -> Obj:
    """`live` with the very objects of `wanted` where they are equal, and names interned."""
    made: Obj = {}
    for name, value in live.items():
        other = wanted.get(name)
        if value == other:
            made[sys.intern(name)] = other
        elif isinstance(value, dict):
            made[sys.intern(name)] = _shared(value, other if isinstance(other, dict) else {})
        else:
            made[sys.intern(name)] = value
    return made
