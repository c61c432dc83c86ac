"""The operator's picture of the cluster: services, their children and their pods."""

from collections.abc import Iterable, Iterator

from sloserve_operator import names
from sloserve_operator.api import (
    FIELD_MANAGER,
    POD,
    SERVICE_KIND,
    Key,
    Obj,
    Ref,
    key_of,
    label_of,
    ref_of,
    uid_of,
    version_of,
)
from sloserve_operator.outline import lean


def service_key(obj: Obj) -> Key | None:
    """The service that an object belongs to; None when it is nothing of ours."""
    if obj.get("kind") == SERVICE_KIND:
        return key_of(obj)
    name = label_of(obj, names.INSTANCE)
    if name is None or label_of(obj, names.MANAGED_BY) != FIELD_MANAGER:
        return None
    return Key(obj["metadata"].get("namespace", ""), name)


class Cache:
    """
    What was heard, by service. Events may come late, twice or never: an older version never
    replaces a newer one, and `replace` puts a complete list in place of what was known.
    """

    def __init__(self) -> None:
        self._objects: dict[Key, dict[Ref, Obj]] = {}
        self._pods: dict[tuple[Key, Ref], None] = {}
        """Where pods are: they are looked for twice a second."""
        self._listed: dict[tuple[str, str | None], str] = {}
        """Kind and namespace (None: all) -> version of the last complete list."""

    def put(self, obj: Obj) -> Key | None:
        """Something exists in this version; its service's key if that was news."""
        key = service_key(obj)
        if key is None:
            return None
        place, ref = self._objects.setdefault(key, {}), ref_of(obj)
        stale = not _newer(obj, place[ref]) if ref in place else self._was_gone(obj)
        if stale:
            self._tidy(key)
            return None
        place[ref] = lean(obj)
        if ref.kind == POD.kind:
            self._pods[key, ref] = None
        return key

    def known_as(self, obj: Obj) -> Obj:
        """What is kept of this very version of an object already, or `obj` itself."""
        key = service_key(obj)
        known = self._objects.get(key, {}).get(ref_of(obj)) if key is not None else None
        return known if known is not None and _same(known, obj) else obj

    def shrink(self, outline: Obj) -> None:
        """Keep no more than this of an object, if this very version is what is known."""
        if (known := self.known_as(outline)) is not outline:
            key = service_key(known)
            assert key is not None
            self._objects[key][ref_of(known)] = outline

    def drop(self, obj: Obj) -> Key | None:
        """Something was deleted; its service's key if it was known."""
        key = service_key(obj)
        place = self._objects.get(key, {}) if key is not None else {}
        known = place.get(ref_of(obj))
        if key is None or known is None or uid_of(known) != uid_of(obj):
            return None
        del place[ref_of(obj)]
        self._pods.pop((key, ref_of(obj)), None)
        self._tidy(key)
        return key

    def _was_gone(self, obj: Obj) -> bool:
        """Whether a complete list that is newer did not have it any more."""
        namespace = obj["metadata"].get("namespace")
        listed = [self._listed.get((obj["kind"], where)) for where in (None, namespace)]
        return any(v is not None and not _later(version_of(obj), v) for v in listed)

    def _tidy(self, key: Key) -> None:
        if not self._objects.get(key, True):
            del self._objects[key]

    def replace(
        self, kind: str, items: Iterable[Obj], *, version: str, namespace: str | None = None
    ) -> set[Key]:
        """
        These are all objects of a kind (in `namespace`) as of `version`; keys with news.

        What is known in a later version stays: it was written while the list was made.
        """
        self._listed.pop((kind, namespace), None)
        listed = [obj for obj in items if service_key(obj) is not None]
        present = {(service_key(obj), ref_of(obj)) for obj in listed}
        changed = {key for obj in listed if (key := self.put(obj)) is not None}
        for key, place in list(self._objects.items()):
            for ref, obj in list(place.items()):
                here = ref.kind == kind and namespace in (None, key.namespace)
                if here and (key, ref) not in present and not _later(version_of(obj), version):
                    self.drop(obj)
                    changed.add(key)
        self._listed[kind, namespace] = version
        return changed

    def forget_kind(self, kind: str) -> None:
        """The cluster has no objects of this kind any more, because it has no such kind."""
        for obj in self.of_kind(kind):
            self.drop(obj)

    def services(self) -> Iterator[Obj]:
        """Every service."""
        for key, place in self._objects.items():
            if (obj := place.get(Ref(SERVICE_KIND, key.name))) is not None:
                yield obj

    def service(self, key: Key) -> Obj | None:
        """One service."""
        return self._objects.get(key, {}).get(Ref(SERVICE_KIND, key.name))

    def children(self, key: Key) -> dict[Ref, Obj]:
        """Objects with the labels of this service's children."""
        known = self._objects.get(key, {})
        return {r: obj for r, obj in known.items() if r.kind not in (POD.kind, SERVICE_KIND)}

    def pods(self, key: Key) -> tuple[Obj, ...]:
        """The service's pods, by name."""
        known = self._objects.get(key, {})
        return tuple(obj for ref, obj in sorted(known.items()) if ref.kind == POD.kind)

    def pods_of(self, part: str) -> list[Obj]:
        """The pods of one part of every service that is known; of others' services not."""
        found = [self._objects[key][ref] for key, ref in self._pods if self.service(key)]
        return [pod for pod in found if label_of(pod, names.COMPONENT) == part]

    def of_kind(self, kind: str) -> list[Obj]:
        """Everything of a kind."""
        places = self._objects.values()
        return [obj for place in places for ref, obj in place.items() if ref.kind == kind]

    def known(self) -> list[Key]:
        """Every service of which anything is known."""
        return list(self._objects)


def _same(one: Obj, other: Obj) -> bool:
    return uid_of(one) == uid_of(other) and version_of(one) == version_of(other) != ""


def _newer(obj: Obj, known: Obj) -> bool:
    if uid_of(obj) != uid_of(known):
        return not _later(version_of(known), version_of(obj))
    return _later(version_of(obj), version_of(known))


def _later(one: str, other: str) -> bool:
    """Versions of one cluster grow; what is no number can only be told apart."""
    if one.isdigit() and other.isdigit():
        return int(one) > int(other)
    return one != other
