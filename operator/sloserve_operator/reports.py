"""A gateway's report (`GET /report` on its internal port) as values, and several added up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sloserve.errors import BadInput
from sloserve.wire import Demand, demand_from_json


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests that count, and those that kept every promise."""

    total: int = 0
    attained: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.total + other.total, self.attained + other.attained)

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(self.total - other.total, self.attained - other.attained)

    @property
    def attainment(self) -> float | None:
        """Share kept (0..1); None without requests."""
        return self.attained / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class at one gateway."""

    name: str
    since_start: Tally = Tally()
    last_5m: Tally = Tally()
    last_minute: Demand = field(default_factory=Demand)
    num_pending: int = 0
    earliest_first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica as a gateway sees it; `state` is loading, ready, draining or unknown."""

    address: str
    state: str
    generation: int | None = None
    num_running: int = 0
    num_waiting: int = 0
    token_supply_per_s: float = 0.0
    free_blocks: int = 0
    total_blocks: int = 0
    frontier: Mapping[str, bool] = field(default_factory=dict)
    """Per class: whether any prompt at all would be admitted now."""
    phase: str = ""
    bytes_done: int = 0
    bytes_total: int = 0

    @property
    def ip(self) -> str:
        """The pod's address without the port."""
        return self.address.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def idle(self) -> bool:
        """Ready, with nothing to do."""
        return self.state == "ready" and self.num_running == 0 and self.num_waiting == 0


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """One gateway."""

    service: str
    generation: int
    draining: bool
    num_inflight: int
    num_pending: int
    classes: Mapping[str, ClassReport]
    replicas: tuple[ReplicaReport, ...]


def parse_report(data: object) -> GatewayReport:
    """The report in a gateway's JSON. Raises BadInput when it is none."""
    try:
        assert isinstance(data, dict)
        return GatewayReport(
            service=str(data["service"]),
            generation=int(data["generation"]),
            draining=bool(data["draining"]),
            num_inflight=int(data["inflight"]),
            num_pending=int(data["pending"]),
            classes={str(c["name"]): _slo_class(c) for c in data["classes"]},
            replicas=tuple(_replica(r) for r in data["replicas"]),
        )
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"not the report of a gateway: {error!r}") from error


def _slo_class(data: dict[str, Any]) -> ClassReport:
    earliest_ms = data.get("earliestFirstTokenMs")
    return ClassReport(
        name=str(data["name"]),
        since_start=_tally(data["sinceStart"]),
        last_5m=_tally(data["last5m"]),
        last_minute=demand_from_json(data.get("lastMinute") or {}),
        num_pending=int(data["pending"]),
        earliest_first_token_s=None if earliest_ms is None else float(earliest_ms) / 1e3,
    )


def _tally(data: dict[str, Any]) -> Tally:
    return Tally(int(data["eligible"]), int(data["attained"]))


def _replica(data: dict[str, Any]) -> ReplicaReport:
    loading = data.get("loading") or {}
    generation = data.get("generation")
    return ReplicaReport(
        address=str(data["address"]),
        state=str(data["state"]),
        generation=None if generation is None else int(generation),
        num_running=int(data.get("running", 0)),
        num_waiting=int(data.get("waiting", 0)),
        token_supply_per_s=float(data.get("tokenSupplyPerS", 0.0)),
        free_blocks=int(data.get("freeBlocks", 0)),
        total_blocks=int(data.get("totalBlocks", 0)),
        frontier={
            str(name): int(f["maxTokens"]) >= int(f["minTokens"])
            for name, f in (data.get("frontier") or {}).items()
        },
        phase=str(loading.get("phase", "")),
        bytes_done=int(loading.get("bytesDone", 0)),
        bytes_total=int(loading.get("bytesTotal", 0)),
    )


@dataclass(frozen=True, slots=True)
class Fleet:
    """What all gateways of a service say together."""

    reports: tuple[GatewayReport, ...]
    """Of gateways that were heard lately."""

    @property
    def num_pending(self) -> int:
        """Requests held for want of a replica that can promise."""
        return sum(report.num_pending for report in self.reports)

    @property
    def num_inflight(self) -> int:
        """Requests under way."""
        return sum(report.num_inflight for report in self.reports)

    def last_5m(self, slo_class: str) -> Tally:
        """The last five minutes of a class."""
        return sum((c.last_5m for c in self._classes(slo_class)), Tally())

    def last_minute(self, slo_class: str) -> Demand:
        """What was asked of a class in the last minute."""
        total = Demand()
        for report in self._classes(slo_class):
            total.add(report.last_minute)
        return total

    def earliest_first_token_s(self, slo_class: str) -> float | None:
        """The least that any gateway knows of."""
        known = [c.earliest_first_token_s for c in self._classes(slo_class)]
        return min((s for s in known if s is not None), default=None)

    def replicas(self) -> Mapping[str, ReplicaReport]:
        """Each replica once, by address; a gateway that knows its state wins."""
        found: dict[str, ReplicaReport] = {}
        for report in self.reports:
            for replica in report.replicas:
                if replica.address not in found or found[replica.address].state == "unknown":
                    found[replica.address] = replica
        return found

    def ready(self) -> Sequence[ReplicaReport]:
        """The replicas that serve."""
        return [r for r in self.replicas().values() if r.state == "ready"]

    def _classes(self, name: str) -> Iterable[ClassReport]:
        return (report.classes[name] for report in self.reports if name in report.classes)
