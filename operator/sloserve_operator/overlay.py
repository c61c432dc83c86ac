"""`podTemplate` laid over a pod template: maps merge, lists of names merge by name."""

from collections.abc import Mapping, Sequence

from sloserve.errors import BadInput
from sloserve_operator.api import Obj

MERGE_KEYS = {"volumeMounts": "mountPath", "ports": "name"}
"""What entries of a list are told apart by, where it is not their name."""


def lay_over(
    template: Obj, overlay: Mapping[str, object], *, selector: Mapping[str, str], field: str
) -> Obj:
    """
    The template with `overlay` put over it; null removes.

    Maps merge, lists whose entries all have a name merge by it, everything else is replaced.
    Raises BadInput for parts that are no part of a pod template, and for labels that `selector`
    needs.
    """
    for part in overlay:
        if part not in ("metadata", "spec"):
            raise BadInput(
                f"is no part of a pod template; write it under {field}.spec",
                field=f"{field}.{part}",
            )
    wanted = overlay.get("metadata") or {}
    labels = (wanted.get("labels") or {}) if isinstance(wanted, Mapping) else {}
    for name in labels if isinstance(labels, Mapping) else ():
        if name in selector:
            raise BadInput(
                "selects the pods of this service and can't be set; use a label of your own",
                field=f"{field}.metadata.labels[{name}]",
            )
    merged = _merge(template, overlay, at=field)
    assert isinstance(merged, dict)
    return merged


def _merge(base: object, over: object, *, at: str, key: str = "") -> object:
    if isinstance(base, Mapping):
        if not isinstance(over, Mapping):
            raise BadInput(f"is {over!r:.60}; must be a mapping", field=at)
        result = dict(base)
        for name, value in over.items():
            if value is None:
                result.pop(name, None)
            elif name in result:
                result[name] = _merge(result[name], value, at=f"{at}.{name}", key=name)
            else:
                result[name] = value
        return result
    if isinstance(base, Sequence) and not isinstance(base, str):
        if not isinstance(over, Sequence) or isinstance(over, str):
            raise BadInput(f"is {over!r:.60}; must be a list", field=at)
        by = MERGE_KEYS.get(key, "name")
        if _told_apart(base, by) and _told_apart(over, by):
            return _merge_by(list(base), list(over), by, at=at)
    return over


def _told_apart(entries: Sequence[object], by: str) -> bool:
    return all(isinstance(entry, Mapping) and by in entry for entry in entries)


def _merge_by(base: list[Obj], over: list[Obj], by: str, *, at: str) -> list[Obj]:
    found = {entry[by]: number for number, entry in enumerate(base)}
    result = list(base)
    for entry in over:
        if entry[by] in found:
            number = found[entry[by]]
            merged = _merge(result[number], entry, at=f"{at}[{entry[by]}]")
            assert isinstance(merged, dict)
            result[number] = _one_source(merged, entry)
        else:
            result.append(entry)
    return result


def _one_source(merged: Obj, entry: Obj) -> Obj:
    """An environment variable has a value or a source: the overlay's takes the other's place."""
    if "value" in entry:
        merged.pop("valueFrom", None)
    elif "valueFrom" in entry:
        merged.pop("value", None)
    return merged
