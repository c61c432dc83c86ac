"""What is known of one service at one moment, and what is remembered between two looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from sloserve.slo.service import ServiceSpec
from sloserve_operator import names
from sloserve_operator.api import Obj, Ref, controller_of, label_of, uid_of
from sloserve_operator.autoscale import Calm
from sloserve_operator.budget import Book
from sloserve_operator.reports import GatewayReport


@dataclass(frozen=True, slots=True)
class Now:
    """One moment on both clocks: dates and status use the wall's, durations the other."""

    wall: datetime
    """In UTC."""
    mono_s: float

    @property
    def text(self) -> str:
        """RFC 3339, as Kubernetes writes it."""
        return self.wall.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Claim:
    """A PersistentVolumeClaim that a service names."""

    exists: bool
    access_modes: tuple[str, ...] = ()

    @property
    def shareable(self) -> bool:
        """Whether pods on several nodes may write to it."""
        return not self.exists or "ReadWriteMany" in self.access_modes


@dataclass(frozen=True)
class Observed:
    """A snapshot of the cluster around one service."""

    service: Obj
    children: Mapping[Ref, Obj] = field(default_factory=dict)
    """Objects with the labels of this service's children."""
    pods: tuple[Obj, ...] = ()
    """Pods of replicas and gateways."""
    reports: Mapping[str, GatewayReport] = field(default_factory=dict)
    """By gateway pod uid; only those heard lately."""
    notes: tuple[Obj, ...] = ()
    """Events of pods that don't come up."""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """Claims that were looked at; what can't be read is not in it."""
    foreign: frozenset[Ref] = frozenset()
    """Names of children that belong to somebody else."""
    refused: Mapping[Ref, str] = field(default_factory=dict)
    """What the API server said to children it would not take."""
    kinds: frozenset[str] = frozenset()
    """Optional kinds that the cluster knows."""
    may_upgrade: bool = True
    """Whether an operator upgrade may roll this service now."""

    @cached_property
    def own(self) -> dict[Ref, Obj]:
        """The children that this very service controls."""
        uid = uid_of(self.service)
        return {
            ref: obj
            for ref, obj in self.children.items()
            if (owner := controller_of(obj)) is not None and owner.get("uid") == uid
        }

    @property
    def leftovers(self) -> list[Ref]:
        """Children of a service of this name that was deleted; the cluster collects them."""
        name, uid = self.service["metadata"]["name"], uid_of(self.service)
        return [
            ref
            for ref, obj in self.children.items()
            if (owner := controller_of(obj)) is not None
            and owner.get("name") == name
            and owner.get("uid") != uid
        ]

    def pods_of(self, part: str) -> list[Obj]:
        """The pods of one part."""
        return [pod for pod in self.pods if label_of(pod, names.COMPONENT) == part]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one generation says."""

    uid: str
    generation: int
    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class Rendered:
    """The children of one generation: rendering costs more than everything else."""

    uid: str
    generation: int
    num_replicas: int
    kinds: frozenset[str]
    children: tuple[Obj, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Memory:
    """
    What is kept between two looks, in this process only. Losing it costs nothing but time: a
    delay starts anew, feasibility is asked of the replicas again.
    """

    book: Book | None = None
    calm: Calm | None = None
    feasible: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """Class -> (hash of its promise and the engine, whether an idle replica can keep it)."""
    parsed: Parsed | None = None
    rendered: Rendered | None = None
    told: Mapping[str, str] = field(default_factory=dict)
    """What was posted as an Event last, by subject."""
