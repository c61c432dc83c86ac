"""Which model names are served: the manifest's, and for a while those that they replaced."""

from collections.abc import Iterable

from sloserve.errors import NotFound
from sloserve.slo.service import ServiceSpec

MAX_SHOWN = 120


class ServedNames:
    """
    The names by which requests may ask for the model, and its adapters.

    A new manifest applies here at once, while replicas are replaced one by one. Until the last of
    those that were listed at the change is gone, the old names are good as well, and requests for
    the new ones wait for a replica that has them.
    """

    def __init__(self, spec: ServiceSpec) -> None:
        self._names = _names(spec)
        self._former: dict[str, frozenset[str]] = {}
        """A name that was replaced -> the replicas that may still answer to it."""
        self._replaced: frozenset[str] = frozenset()

    def apply(self, spec: ServiceSpec, *, listed: Iterable[str]) -> None:
        """A new manifest is in force; `listed` are the addresses of the replicas there are."""
        names, there = _names(spec), frozenset(listed)
        if names == self._names:
            return
        former = {name: those & there for name, those in self._former.items()}
        former |= dict.fromkeys(self._names, there)
        self._former = {n: those for n, those in former.items() if those and n not in names}
        self._names, self._replaced = names, there

    def check(self, name: str, *, staying: Iterable[str]) -> None:
        """
        Raises NotFound for a name that nobody answers to any more, or never did; `staying` are the
        addresses of the replicas that are not about to leave.
        """
        if name in self._names or not self._former.get(name, frozenset()).isdisjoint(staying):
            return
        served = ", ".join(self._names)
        raise NotFound(f"model {name[:MAX_SHOWN]!r} is not served here; served: {served}")

    def is_coming(self, name: str, *, listed: Iterable[str]) -> bool:
        """Whether replicas are being replaced by ones that answer to `name`."""
        return name in self._names and not self._replaced.isdisjoint(listed)


def _names(spec: ServiceSpec) -> tuple[str, ...]:
    return spec.model.names
