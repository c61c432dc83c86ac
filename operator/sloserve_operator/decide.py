"""
The operator's one decision: a snapshot in, everything to do out. Pure.

What can't be carried out changes nothing that runs: the children of the last good spec stay as
they are, and the status says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from sloserve.errors import BadInput
from sloserve.slo import ServiceSpec, parse_service
from sloserve.slo.cluster import AutoscalingSpec
from sloserve_operator import names
from sloserve_operator.api import Obj, annotation_of, owner_reference, ref_of, uid_of
from sloserve_operator.autoscale import Scaling, scale
from sloserve_operator.budget import Book, Heard, entered, opened, parse_counted, trimmed
from sloserve_operator.children import render
from sloserve_operator.children.subject import Subject
from sloserve_operator.children.workload import digest, kept, upgraded
from sloserve_operator.conditions import Why
from sloserve_operator.facts import Problem, feasibility, fleet_of, gather, promise_digest
from sloserve_operator.notices import Notice, notices
from sloserve_operator.observed import Memory, Now, Observed, Parsed, Rendered
from sloserve_operator.pods import leaving, restarts
from sloserve_operator.settings import OperatorSettings
from sloserve_operator.status import status_of, status_of_refused

UNBOUNDED = 1000
CLEANUP_S = 1.0
TURN_S = 10.0
"""Who waits for the upgrades of others asks again after this time."""


class Upgrade(Enum):
    """What a newer operator's rendering means for this service now."""

    NONE = "none"
    BEGINS = "begins"
    WAITS = "waits"  # for others: only a few services roll at a time


@dataclass(frozen=True, slots=True)
class PodNote:
    """Annotations that a pod shall have."""

    pod: Obj
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one service; applied in the order of the fields."""

    pod_costs: tuple[PodNote, ...] = ()
    """Which pods shall go first, told before the count goes down."""
    children: tuple[Obj, ...] = ()
    prune: tuple[Obj, ...] = ()
    """Own children that are not wanted any more."""
    pod_notes: tuple[PodNote, ...] = ()
    """Told after the configuration was written."""
    status: Obj | None = None
    counted: tuple[PodNote, ...] = ()
    """Which counters are in the budget; only together with a status that holds them."""
    notices: tuple[Notice, ...] = ()
    memory: Memory = field(default_factory=Memory)
    again_s: float | None = None
    """Look again after so many seconds even if nothing happens."""
    upgrading: bool = False
    """This starts one of the rollouts that an operator upgrade causes."""
    rolling: bool = False
    """Some rollout is under way."""


def decide(observed: Observed, *, settings: OperatorSettings, memory: Memory, now: Now) -> Decision:
    """Everything to do about one service. No clock, no client, no await in here."""
    service = observed.service
    previous: Obj = service.get("status") or {}
    if "deletionTimestamp" in service["metadata"]:
        return Decision(memory=memory)
    try:
        parsed = _parsed(service, memory)
    except BadInput as error:
        generation = int(service["metadata"].get("generation", 1))
        status = status_of_refused(error.message, previous=previous, generation=generation, now=now)
        return _told(Decision(status=status, memory=memory), previous, memory)
    spec = parsed.spec
    book = _book(spec, observed, previous, memory, now)
    feasible = feasibility(spec, fleet_of(observed), remembered=_remembered(spec, previous, memory))
    scaling = _scaling(spec, observed, feasible, memory, now)
    children, problem, upgrade, rendered = _children(spec, observed, settings, scaling, memory)
    facts = gather(
        spec,
        observed,
        scaling=scaling,
        book=book,
        feasible={name: told for name, (_, told) in feasible.items()},
        problem=problem,
    )
    decision = Decision(
        status=status_of(facts, previous=previous, now=now),
        memory=replace(
            memory,
            book=book,
            calm=scaling.calm,
            feasible=feasible,
            parsed=parsed,
            rendered=rendered,
        ),
        counted=_counted(observed, book),
        again_s=_again_s(observed, scaling, declared=spec.autoscaling, upgrade=upgrade, now=now),
        upgrading=upgrade is Upgrade.BEGINS,
        rolling=not (facts.replicas.rolled and facts.gateways.rolled),
    )
    if children is not None:
        wanted = {ref_of(child) for child in children}
        decision = replace(
            decision,
            pod_costs=_costs(spec, observed, scaling),
            children=tuple(children),
            prune=tuple(obj for ref, obj in observed.own.items() if ref not in wanted),
            pod_notes=_config_notes(spec, observed),
        )
    return _told(decision, previous, memory, scaling=scaling, live=_live(spec, observed))


def _parsed(service: Obj, memory: Memory) -> Parsed:
    """The spec, from memory when its generation is the same. Raises BadInput."""
    uid, generation = uid_of(service), int(service["metadata"].get("generation", 0))
    known = memory.parsed
    if known is not None and (known.uid, known.generation) == (uid, generation) and generation:
        return known
    return Parsed(uid, generation, parse_service(_manifest(service)))


def _manifest(service: Obj) -> Obj:
    """What people wrote: of the metadata only what the parser reads, whatever clusters add."""
    meta = service["metadata"]
    known = {name: meta[name] for name in ("name", "namespace", "generation") if name in meta}
    return {
        "apiVersion": service.get("apiVersion"),
        "kind": service.get("kind"),
        "metadata": known,
        "spec": service.get("spec"),
    }


def _told(
    decision: Decision,
    previous: Obj,
    memory: Memory,
    *,
    scaling: Scaling | None = None,
    live: int | None = None,
) -> Decision:
    """With the Events that follow from what changed."""
    assert decision.status is not None
    found, told = notices(
        previous, decision.status, told=memory.told, scaling=scaling, replicas_before=live
    )
    return replace(decision, notices=found, memory=replace(decision.memory, told=told))


def _children(
    spec: ServiceSpec,
    observed: Observed,
    settings: OperatorSettings,
    scaling: Scaling,
    memory: Memory,
) -> tuple[list[Obj] | None, Problem | None, Upgrade, Rendered | None]:
    """
    (Children to apply or None to leave everything, what is wrong, an upgrade's rollout, what was
    rendered.)
    """
    problem = _conflict(observed) or _unshareable(spec, observed) or _refusal(observed)
    if problem is not None:
        return None, problem, Upgrade.NONE, memory.rendered
    try:
        rendered = _rendered(spec, observed, settings, scaling, memory)
    except BadInput as error:
        why = Why.INVALID_POD_TEMPLATE if "podTemplate" in error.message else Why.INVALID_SPEC
        return None, Problem(why, error.message), Upgrade.NONE, None
    own, upgrade = observed.own, Upgrade.NONE
    children = []
    for child in rendered.children:
        live = own.get(ref_of(child))
        chosen = child
        if child["kind"] == "Deployment" and live is not None and upgraded(child, live):
            is_replica = ref_of(child) == names.deployment(spec.name, names.REPLICA)
            allowed = not is_replica or spec.engine.rollout.on_operator_upgrade
            if allowed and observed.may_upgrade:
                upgrade = Upgrade.BEGINS
            else:
                chosen = with_digest(kept(child, live))
                upgrade = Upgrade.WAITS if allowed else upgrade
        children.append(chosen)
    return children, None, upgrade, rendered


def _rendered(
    spec: ServiceSpec,
    observed: Observed,
    settings: OperatorSettings,
    scaling: Scaling,
    memory: Memory,
) -> Rendered:
    """The children, from memory when nothing they are made from has changed. Raises BadInput."""
    wanted = Rendered(uid_of(observed.service), spec.generation, scaling.replicas, observed.kinds)
    if memory.rendered == wanted:
        assert memory.rendered is not None
        return memory.rendered
    subject = Subject(
        spec=spec,
        owner=owner_reference(observed.service),
        settings=settings,
        num_replicas=scaling.replicas,
        kinds=observed.kinds,
    )
    return replace(wanted, children=tuple(with_digest(child) for child in render(subject)))


def _again_s(
    observed: Observed,
    scaling: Scaling,
    *,
    declared: AutoscalingSpec | None,
    upgrade: Upgrade,
    now: Now,
) -> float | None:
    """When to look again although nothing is heard: only time tells that a delay is over."""
    waits = []
    if observed.leftovers:
        waits.append(CLEANUP_S)
    if upgrade is Upgrade.WAITS:
        waits.append(TURN_S)
    if scaling.calm is not None and declared is not None:
        over_s = scaling.calm.since_s + declared.scale_down_delay_s
        waits.append(max(0.0, over_s - now.mono_s))
    return min(waits, default=None)


def with_digest(child: Obj) -> Obj:
    """The child with a hash of itself, so that removed fields make a difference too."""
    meta = child["metadata"]
    plain = {n: v for n, v in (meta.get("annotations") or {}).items() if n != names.APPLIED}
    mark = digest({**child, "metadata": {**meta, "annotations": plain}})
    return {**child, "metadata": {**meta, "annotations": {**plain, names.APPLIED: mark}}}


def _conflict(observed: Observed) -> Problem | None:
    if observed.leftovers:
        ref = observed.leftovers[0]
        text = f"{ref.kind} {ref.name} of a deleted service of this name is still being removed"
        return Problem(Why.CLEANING_UP, text)
    if observed.foreign:
        told = ", ".join(f"{ref.kind} {ref.name}" for ref in sorted(observed.foreign))
        text = f"{told} exists and is not ours: delete or rename it, or rename this service"
        return Problem(Why.NAME_CONFLICT, text)
    return None


def _unshareable(spec: ServiceSpec, observed: Observed) -> Problem | None:
    """A cache that only one node may write, for a service of several replicas."""
    name = spec.model.cache.claim_name
    most = spec.autoscaling.max_replicas if spec.autoscaling else spec.replicas
    claim = observed.claims.get(name) if name is not None else None
    if claim is None or claim.shareable or most <= 1:
        return None
    return Problem(
        Why.CACHE_NOT_SHARED,
        f"the PersistentVolumeClaim {name} is {', '.join(claim.access_modes)}, but up to {most} "
        "replicas would write to it: use a ReadWriteMany claim, one replica, or cache.sizeLimit",
    )


def _refusal(observed: Observed) -> Problem | None:
    """What the API server said to a child."""
    if not observed.refused:
        return None
    ref, message = sorted(observed.refused.items())[0]
    if ref.kind == "Deployment":
        return Problem(Why.INVALID_POD_TEMPLATE, f"{ref.kind} {ref.name} is refused: {message}")
    return Problem(Why.REFUSED_BY_CLUSTER, f"{ref.kind} {ref.name} is refused: {message}")


def _scaling(
    spec: ServiceSpec,
    observed: Observed,
    feasible: Mapping[str, tuple[str, bool]],
    memory: Memory,
    now: Now,
) -> Scaling:
    """The count of replicas: autoscaling's, or the spec's with advice on what would be needed."""
    live = _live(spec, observed)
    declared = spec.autoscaling
    current = spec.replicas
    if declared is not None:
        start = max(1, declared.min_replicas) if declared.min_replicas else 0
        current = start if live is None else live
    result = scale(
        declared or AutoscalingSpec(max_replicas=UNBOUNDED, min_replicas=0),
        fleet_of(observed),
        current=current,
        classes=[c.name for c in spec.classes],
        infeasible=frozenset(name for name, (_, told) in feasible.items() if not told),
        calm=memory.calm,
        now_s=now.mono_s,
    )
    if declared is not None:
        return result
    advised = result.unbounded if spec.replicas > 0 else spec.replicas
    return replace(result, replicas=spec.replicas, unbounded=max(advised, spec.replicas), calm=None)


def _live(spec: ServiceSpec, observed: Observed) -> int | None:
    """The count in the Deployment: where autoscaling's last decision lives."""
    live = observed.own.get(names.deployment(spec.name, names.REPLICA))
    return None if live is None else int((live.get("spec") or {}).get("replicas", 1))


def _remembered(spec: ServiceSpec, previous: Obj, memory: Memory) -> Mapping[str, tuple[str, bool]]:
    """What is known of feasibility; a new process believes the status of the same generation."""
    if memory.feasible or int(previous.get("observedGeneration", 0)) != spec.generation:
        return memory.feasible
    told = {str(c["name"]): c["feasible"] for c in previous.get("classes") or () if "feasible" in c}
    return {
        c.name: (promise_digest(spec, c), bool(told[c.name]))
        for c in spec.classes
        if c.name in told
    }


def _book(spec: ServiceSpec, observed: Observed, previous: Obj, memory: Memory, now: Now) -> Book:
    classes = [c.name for c in spec.classes]
    book = memory.book if memory.book is not None else opened(previous)
    heard = [
        Heard(
            pod_uid=uid_of(pod),
            restarts=restarts(pod),
            noted=parse_counted(annotation_of(pod, names.COUNTED)),
            report=observed.reports[uid_of(pod)],
        )
        for pod in observed.pods_of(names.GATEWAY)
        if uid_of(pod) in observed.reports
    ]
    today = now.wall.date()
    full = entered(book, heard, today=today, classes=classes)
    alive = [uid_of(pod) for pod in observed.pods_of(names.GATEWAY)]
    return trimmed(
        full, today=today, period_s=spec.observability.period_s, classes=classes, pods=alive
    )


def _counted(observed: Observed, book: Book) -> tuple[PodNote, ...]:
    notes = []
    for pod in observed.pods_of(names.GATEWAY):
        counted = book.counted.get(uid_of(pod))
        if counted is not None and annotation_of(pod, names.COUNTED) != counted.text():
            notes.append(PodNote(pod, {names.COUNTED: counted.text()}))
    return tuple(notes)


def _config_notes(spec: ServiceSpec, observed: Observed) -> tuple[PodNote, ...]:
    """The generation on every pod: a changed annotation makes its kubelet refresh the mount."""
    wanted = str(spec.generation)
    return tuple(
        PodNote(pod, {names.CONFIG_GENERATION: wanted})
        for pod in observed.pods
        if not leaving(pod) and annotation_of(pod, names.CONFIG_GENERATION) != wanted
    )


def _costs(spec: ServiceSpec, observed: Observed, scaling: Scaling) -> tuple[PodNote, ...]:
    """Before the count goes down: the least loaded pods are the cheapest to delete."""
    live = _live(spec, observed)
    if live is None or live <= scaling.replicas:
        return ()
    load = {r.ip: r.num_running + r.num_waiting for r in fleet_of(observed).replicas().values()}
    notes = []
    for pod in observed.pods_of(names.REPLICA):
        cost = str(load.get(str((pod.get("status") or {}).get("podIP", "")), 0))
        if not leaving(pod) and annotation_of(pod, names.DELETION_COST) != cost:
            notes.append(PodNote(pod, {names.DELETION_COST: cost}))
    return tuple(notes)
