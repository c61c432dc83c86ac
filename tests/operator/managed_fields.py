"""Fields of an object by path, as server-side apply tells them apart."""

from collections.abc import Iterator
from typing import Any

Path = tuple[Any, ...]
ATOMIC = ("command", "args", "ingress", "egress", "drop", "accessModes", "policyTypes")
LIST_KEYS = {
    "containers": "name",
    "volumes": "name",
    "env": "name",
    "ports": "name",
    "volumeMounts": "mountPath",
    "ownerReferences": "uid",
    "conditions": "type",
    "classes": "name",
    "days": "date",
    "imagePullSecrets": "name",
}


def leaves(value: Any, path: Path = (), key: str = "") -> Iterator[tuple[Path, Any]]:
    """Every field with its path; entries of keyed lists are told apart by their key."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name), name)
    elif isinstance(value, list) and value and key in LIST_KEYS and key not in ATOMIC:
        by = LIST_KEYS[key]
        for entry in value:
            at = (*path, (by, entry.get(by)))
            for inner_path, inner in leaves(entry, at):
                yield inner_path, inner
    else:
        yield path, value


def lookup(obj: Any, path: Path) -> tuple[Any, Any]:
    """(container, index) of a path; KeyError when it is not there."""
    place, parent, last = obj, None, None
    for step in path:
        parent = place
        if isinstance(step, tuple):
            found = [n for n, e in enumerate(place) if e.get(step[0]) == step[1]]
            if not found:
                raise KeyError(step)
            last = found[0]
        else:
            last = step
        place = parent[last]
    return parent, last


def unset(obj: Any, path: Path) -> None:
    """Remove a field; an entry of a keyed list goes with its key."""
    try:
        place, last = lookup(obj, path)
        del place[last]
    except (KeyError, IndexError, TypeError):
        return
    if len(path) > 1 and isinstance(path[-2], tuple) and path[-2][0] == path[-1]:
        entries, _ = lookup(obj, path[:-2])
        entries[path[-3]] = [entry for entry in entries[path[-3]] if entry is not place]


def assign(obj: Any, path: Path, value: Any) -> None:
    place = obj
    for number, step in enumerate(path):
        final = number == len(path) - 1
        if isinstance(step, tuple):
            entry = next((e for e in place if e.get(step[0]) == step[1]), None)
            if entry is None:
                entry = {step[0]: step[1]}
                place.append(entry)
            place = entry
        elif final:
            place[step] = value
        else:
            following = path[number + 1]
            place = place.setdefault(step, [] if isinstance(following, tuple) else {})
