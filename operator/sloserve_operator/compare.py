"""Whether a child is as it should be, seen from the cached copy alone."""

from sloserve_operator import names
from sloserve_operator.api import Obj, annotation_of


def holds(wanted: object, live: object) -> bool:
    """
    Whether every wanted field is in `live` with its value; what the API server added is no matter.

    A list of named entries is compared by name, as server-side apply merges it; entries that
    others added don't count.
    """
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            _holds_field(value, live, name) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return False
        if _named(wanted) and _named(live):
            found = {entry["name"]: entry for entry in live}
            return all(holds(entry, found.get(entry["name"])) for entry in wanted)
        return len(wanted) == len(live) and all(map(holds, wanted, live))
    return wanted == live


def _holds_field(value: object, live: Obj, name: str) -> bool:
    if name in live:
        return holds(value, live[name])
    return value in ({}, [], None)


def _named(entries: list[Obj]) -> bool:
    return all(isinstance(entry, dict) and "name" in entry for entry in entries)


def in_place(wanted: Obj, live: Obj | None) -> bool:
    """Whether nothing has to be applied."""
    if live is None:
        return False
    same = annotation_of(wanted, names.APPLIED) == annotation_of(live, names.APPLIED)
    return same and holds(wanted, live)
