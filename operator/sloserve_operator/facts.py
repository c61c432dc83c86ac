"""Everything status speaks of, put together once: the input of every condition."""

from collections.abc import Mapping
from dataclasses import dataclass

from sloserve.slo import ServiceSpec, SloClass, service_to_dict
from sloserve_operator import names, pods
from sloserve_operator.api import Obj, uid_of
from sloserve_operator.autoscale import Scaling
from sloserve_operator.budget import Book
from sloserve_operator.children.workload import digest
from sloserve_operator.conditions import Why
from sloserve_operator.observed import Observed
from sloserve_operator.reports import Fleet, GatewayReport
from sloserve_operator.workloads import Rollout, rollout

MIN_REQUESTS = 20
"""Fewer requests in five minutes say nothing about an objective."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a spec can't be carried out."""

    reason: Why
    message: str


@dataclass(frozen=True, slots=True)
class Facts:
    """One service as it is."""

    spec: ServiceSpec
    observed: Observed
    fleet: Fleet
    scaling: Scaling
    book: Book
    feasible: Mapping[str, bool]
    """Classes of which it is known."""
    problem: Problem | None
    """Something of the spec could not be carried out."""
    replicas: Rollout
    gateways: Rollout
    trouble: pods.Trouble | None

    @property
    def in_force(self) -> bool:
        """Whether every process there is runs this generation, and said so."""
        rolled = self.replicas.rolled and self.gateways.rolled
        asked = self.gateways.ready > 0 or self.gateways.wanted == 0
        return rolled and asked and not self.unheard and not self.behind

    @property
    def behind(self) -> list[str]:
        """Who has not applied this generation of the spec."""
        wanted = self.spec.generation
        late = [f"gateway {uid}" for uid in self._late_gateways()]
        late += [
            f"replica {r.address}"
            for r in self.fleet.ready()
            if r.generation is not None and r.generation < wanted
        ]
        return late

    def _late_gateways(self) -> list[str]:
        wanted = self.spec.generation
        reports = self.observed.reports
        return [
            pod["metadata"]["name"]
            for pod in self.observed.pods_of(names.GATEWAY)
            if not pods.leaving(pod)
            and (told := reports.get(uid_of(pod))) is not None
            and told.generation < wanted
        ]

    @property
    def unheard(self) -> bool:
        """Gateways are ready, but none answers the operator."""
        return self.gateways.ready > 0 and not self.fleet.reports


def gather(
    spec: ServiceSpec,
    observed: Observed,
    *,
    scaling: Scaling,
    book: Book,
    feasible: Mapping[str, bool],
    problem: Problem | None,
) -> Facts:
    """The facts of a service whose spec was parsed."""
    own = observed.own
    replica_pods, gateway_pods = (observed.pods_of(p) for p in (names.REPLICA, names.GATEWAY))
    return Facts(
        spec=spec,
        observed=observed,
        fleet=fleet_of(observed),
        scaling=scaling,
        book=book,
        feasible=feasible,
        problem=problem,
        replicas=rollout(
            own.get(names.deployment(spec.name, names.REPLICA)), wanted=scaling.replicas
        ),
        gateways=rollout(
            own.get(names.deployment(spec.name, names.GATEWAY)), wanted=spec.gateway.replicas
        ),
        trouble=pods.worst(replica_pods, observed.notes)
        or pods.worst(gateway_pods, observed.notes),
    )


def fleet_of(observed: Observed) -> Fleet:
    """The reports of gateways that are of this service and not on their way out."""
    name = observed.service["metadata"]["name"]
    heard: list[GatewayReport] = [r for r in observed.reports.values() if r.service == name]
    staying = [r for r in heard if not r.draining]
    return Fleet(tuple(staying or heard))


def promise_digest(spec: ServiceSpec, slo_class: SloClass) -> str:
    """Changes with everything that decides whether an idle replica can keep a class's promise."""
    body: Obj = service_to_dict(spec)["spec"]  # type: ignore[assignment]
    declared = next(c for c in body["sloClasses"] if c["name"] == slo_class.name)
    return digest([declared, body["model"], body["engine"]])


def feasibility(
    spec: ServiceSpec, fleet: Fleet, *, remembered: Mapping[str, tuple[str, bool]]
) -> dict[str, tuple[str, bool]]:
    """
    Per class, whether one request on an idle replica would keep its promise, as far as known.

    The replicas' own planners tell: load only shrinks a frontier, so one that is not empty proves
    feasibility, and an empty one on an idle replica disproves it.
    """
    known: dict[str, tuple[str, bool]] = {}
    for slo_class in spec.classes:
        mark = promise_digest(spec, slo_class)
        if slo_class.name in remembered and remembered[slo_class.name][0] == mark:
            known[slo_class.name] = remembered[slo_class.name]
        told = [
            (r.idle, r.frontier[slo_class.name])
            for r in fleet.ready()
            if slo_class.name in r.frontier and (r.generation or 0) >= spec.generation
        ]
        if any(open_now for _, open_now in told):
            known[slo_class.name] = (mark, True)
        elif any(idle for idle, _ in told):
            known[slo_class.name] = (mark, False)
    return known
