"""The status of a service: what is written, and when a number is worth a write."""

import re

from sloserve.slo import SloClass
from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.budget import remaining
from sloserve_operator.conditions import FALSE, UNKNOWN, Condition, Type, Why, find, phase, written
from sloserve_operator.facts import Facts
from sloserve_operator.observed import Now
from sloserve_operator.verdicts import verdicts

QUIET_S = 30.0
"""Numbers change at most this often."""
STEP = 0.5
"""And only by so many points."""
_TRAFFIC = re.compile(r"[0-9.]+%|[0-9]+(?= requests)")
DAYS_S = 300.0
"""Counts alone are written this often: gateways remember them meanwhile."""


def status_of(facts: Facts, *, previous: Obj, now: Now) -> Obj:
    """The status of a service whose spec was parsed."""
    spec, generation = facts.spec, facts.spec.generation
    replicas = facts.replicas
    classes = [_slo_class(facts, c) for c in spec.classes]
    met = [float(c["attainment5m"]) for c in classes if "attainment5m" in c]
    left = [float(c["budgetRemaining"]) for c in classes]
    settled = facts.problem is not None or facts.in_force
    seen = generation if settled else int(previous.get("observedGeneration", 0))
    status: Obj = {
        "observedGeneration": seen,
        "replicas": replicas.existing,
        "readyReplicas": replicas.ready,
        "selector": names.selector_text(spec.name, names.REPLICA),
        "ready": f"{replicas.ready}/{replicas.wanted}",
        "endpoint": names.endpoint(
            spec.name, spec.namespace, tls=spec.gateway.tls_secret is not None
        ),
        "bindingConstraint": facts.scaling.constraint,
        "classes": classes,
        "worstBudget": _percent(min(left)),
        "conditions": written(
            verdicts(facts),
            previous=previous.get("conditions") or (),
            generation=generation,
            now=now.text,
        ),
    }
    if met:
        status["worstAttainment"] = _percent(min(met))
    return status if seen else {k: v for k, v in status.items() if k != "observedGeneration"}


def status_of_refused(message: str, *, previous: Obj, generation: int, now: Now) -> Obj:
    """The status of a service whose spec can't be read: what runs goes on as it was."""
    told = [
        Condition(Type.ACCEPTED, FALSE, Why.INVALID_SPEC, message),
        Condition(Type.READY, FALSE, Why.NOT_ACCEPTED, message),
    ]
    if not find(previous, Type.AVAILABLE):
        told.append(Condition(Type.AVAILABLE, UNKNOWN, Why.NOT_ACCEPTED, "nothing runs yet"))
    conditions = written(
        told, previous=previous.get("conditions") or (), generation=generation, now=now.text
    )
    return {**previous, "observedGeneration": generation, "conditions": conditions}


def _slo_class(facts: Facts, slo_class: SloClass) -> Obj:
    name = slo_class.name
    told: Obj = {
        "name": name,
        "budgetRemaining": _percent(
            100.0 * remaining(facts.book.class_total(name), slo_class.objective)
        ),
    }
    attainment = facts.fleet.last_5m(name).attainment
    if attainment is not None:
        told["attainment5m"] = _percent(100.0 * attainment)
    if name in facts.feasible:
        told["feasible"] = facts.feasible[name]
    days = facts.book.days.get(name)
    if days:
        told["days"] = [
            {"date": day, "total": tally.total, "attained": tally.attained}
            for day, tally in sorted(days.items())
        ]
    return told


def _percent(value: float) -> str:
    return f"{max(value, -9999.0):.1f}"


def due_s(previous: Obj, wanted: Obj, *, since_s: float, counted_s: float) -> float | None:
    """
    Seconds until `wanted` is to be written, 0: now, None: there is nothing to write.

    `since_s` have passed since the last write, `counted_s` since one with new daily counts. What
    a person waits for (conditions, what is under way, counts of replicas, generation) is written
    at once. Percentages wait for QUIET_S and STEP, daily counts for DAYS_S.
    """
    if wanted == previous:
        return None
    if _firm(wanted) != _firm(previous):
        return 0.0
    counts_s = max(0.0, DAYS_S - counted_s)
    if _moved(previous, wanted):
        return min(counts_s, max(0.0, QUIET_S - since_s))
    return counts_s


def without_news_of_days(wanted: Obj, *, previous: Obj, counted_s: float) -> Obj:
    """
    `wanted` with the daily counts that are written already, while nothing but percentages moved.

    Every write of counts takes one more for each gateway, on whose pod it is noted what of its
    counters is in them.
    """
    if counted_s >= DAYS_S or _firm(wanted) != _firm(previous):
        return wanted
    before = {c["name"]: c.get("days") for c in previous.get("classes") or ()}
    classes = []
    for told in wanted["classes"]:
        plain = {name: value for name, value in told.items() if name != "days"}
        days = before.get(told["name"])
        classes.append(plain | {"days": days} if days else plain)
    return {**wanted, "classes": classes}


def _firm(status: Obj) -> Obj:
    """The part that is written at once."""
    soft = ("classes", "worstAttainment", "worstBudget", "bindingConstraint")
    firm = {name: value for name, value in status.items() if name not in soft}
    firm["conditions"] = [
        (c["type"], c["status"], c.get("reason"), c.get("observedGeneration"))
        for c in status.get("conditions") or ()
    ]
    firm["classes"] = [(c["name"], c.get("feasible")) for c in status.get("classes") or ()]
    firm["phase"] = phase(status)
    return firm


def _moved(previous: Obj, wanted: Obj) -> bool:
    """Whether a percentage moved by a step, came or went, or a message changed its words."""
    if _words(previous) != _words(wanted):
        return True
    if previous.get("bindingConstraint") != wanted.get("bindingConstraint"):
        return True
    before, after = _numbers(previous), _numbers(wanted)
    return before.keys() != after.keys() or any(
        abs(after[name] - before[name]) >= STEP for name in after
    )


def _words(status: Obj) -> list[str]:
    """Messages without shares and counts of requests: traffic moves those at every look."""
    told = (str(c.get("message")) for c in status.get("conditions") or ())
    return [_TRAFFIC.sub("#", message) for message in told]


def _numbers(status: Obj) -> dict[tuple[str, str], float]:
    return {
        (str(c["name"]), field): float(c[field])
        for c in status.get("classes") or ()
        for field in ("attainment5m", "budgetRemaining")
        if field in c
    }
