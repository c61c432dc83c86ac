"""Each condition from the facts: small pure functions, one per condition."""

from collections.abc import Sequence

from sloserve.slo.cluster import Auto
from sloserve_operator.api import POD_MONITOR, PROMETHEUS_RULE
from sloserve_operator.conditions import FALSE, TRUE, UNKNOWN, Condition, Type, Why
from sloserve_operator.facts import MIN_REQUESTS, Facts
from sloserve_operator.reports import ReplicaReport

MIB, GIB = 2**20, 2**30


def verdicts(facts: Facts) -> list[Condition]:
    """All conditions of a service whose spec was parsed."""
    return [
        accepted(facts),
        ready(facts),
        available(facts),
        progressing(facts),
        slo_feasible(facts),
        slo_met(facts),
        capacity_limited(facts),
        monitoring_ready(facts),
    ]


def accepted(facts: Facts) -> Condition:
    """The spec can be carried out."""
    if facts.problem is not None:
        return Condition(Type.ACCEPTED, FALSE, facts.problem.reason, facts.problem.message)
    if facts.spec.autoscaling is not None:
        text = "the spec is carried out; autoscaling decides the replicas, spec.replicas is ignored"
        return Condition(Type.ACCEPTED, TRUE, Why.REPLICAS_IGNORED, text)
    return Condition(Type.ACCEPTED, TRUE, Why.ACCEPTED, "the spec is carried out")


def ready(facts: Facts) -> Condition:
    """The current generation serves."""
    replicas, gateways = facts.replicas, facts.gateways
    status, why, text = TRUE, Why.READY, f"generation {facts.spec.generation} serves"
    if facts.problem is not None:
        status, why, text = FALSE, Why.NOT_ACCEPTED, facts.problem.message
    elif not replicas.rolled:
        status, why = FALSE, Why.ROLLING_OUT
        text = f"{replicas.updated} of {replicas.wanted} replicas are of this generation"
    elif not replicas.complete:
        status, why = FALSE, Why.REPLICAS_NOT_READY
        text = f"{replicas.ready} of {replicas.wanted} replicas are ready"
    elif not gateways.complete:
        status, why = FALSE, Why.GATEWAYS_NOT_READY
        text = f"{gateways.ready} of {gateways.wanted} gateways are ready"
    elif facts.unheard:
        status, why = UNKNOWN, Why.GATEWAYS_UNREACHABLE
        text = "no gateway answers the operator; does a NetworkPolicy keep it from port internal?"
    elif facts.behind:
        status, why = FALSE, Why.CONFIG_NOT_READ
        late = facts.behind
        text = f"{len(late)} processes have not read this generation yet, as {late[0]}"
    elif replicas.wanted == 0:
        why, text = Why.IDLE, "no replica is wanted"
    return Condition(Type.READY, status, why, text)


def available(facts: Facts) -> Condition:
    """A request would be answered or held now."""
    replicas, coming = facts.replicas, facts.replicas.wanted > 0
    held = f"requests are held for up to {facts.spec.gateway.hold_timeout_s:g} s"
    if facts.gateways.ready == 0:
        text = f"no gateway of {facts.gateways.wanted} is ready"
        return Condition(Type.AVAILABLE, FALSE, Why.NO_GATEWAY, text)
    found = [r for r in facts.fleet.replicas().values() if r.state != "loading"]
    if replicas.ready > 0 and facts.fleet.reports and not found:
        text = f"no gateway has found one of {replicas.ready} ready replicas yet; {held}"
        return Condition(Type.AVAILABLE, TRUE, Why.HOLDING, text)
    if replicas.ready > 0:
        text = f"{replicas.ready} replicas answer"
        return Condition(Type.AVAILABLE, TRUE, Why.ANSWERING, text)
    if coming:
        return Condition(Type.AVAILABLE, TRUE, Why.HOLDING, f"no replica is ready; {held}")
    if facts.spec.autoscaling is not None:
        text = f"no replica runs until a request comes; {held}"
        return Condition(Type.AVAILABLE, TRUE, Why.IDLE, text)
    return Condition(Type.AVAILABLE, FALSE, Why.IDLE, "spec.replicas is 0: raise it to serve")


def progressing(facts: Facts) -> Condition:
    """A rollout or scaling is under way; False says what stands in its way, or that it is over."""
    replicas, gateways = facts.replicas, facts.gateways
    if replicas.complete and gateways.complete:
        return Condition(Type.PROGRESSING, FALSE, Why.COMPLETE, "nothing is under way")
    refused = replicas.refused or gateways.refused
    if refused:
        return Condition(Type.PROGRESSING, FALSE, Why.PODS_REFUSED, refused[:400])
    if facts.trouble is not None:
        return Condition(Type.PROGRESSING, FALSE, facts.trouble.reason, facts.trouble.message)
    if replicas.overdue or gateways.overdue:
        text = "no pod became ready in model.loadTimeout; look at the logs of the newest pod"
        return Condition(Type.PROGRESSING, FALSE, Why.LOAD_TIMEOUT, text)
    loading = [r for r in facts.fleet.replicas().values() if r.state == "loading"]
    if loading:
        return Condition(Type.PROGRESSING, TRUE, Why.LOADING, _loading(loading))
    if replicas.rolled and gateways.rolled:
        text = f"{replicas.ready} of {replicas.wanted} replicas are ready"
        return Condition(Type.PROGRESSING, TRUE, Why.SCALING, text)
    text = f"{replicas.updated} of {replicas.wanted} replicas are up to date"
    return Condition(Type.PROGRESSING, TRUE, Why.ROLLING_OUT, text)


def _loading(loading: Sequence[ReplicaReport]) -> str:
    last = min(loading, key=lambda r: (r.bytes_done, r.address))
    text = f"{len(loading)} replicas load: {last.phase or 'starting'}"
    if last.bytes_total:
        unit, name = (GIB, "GiB") if last.bytes_total >= GIB else (MIB, "MiB")
        text += f", {last.bytes_done / unit:.1f} of {last.bytes_total / unit:.1f} {name}"
    return text


def slo_feasible(facts: Facts) -> Condition:
    """One request of every class on an idle replica would keep its promise."""
    classes = facts.spec.classes
    impossible = [c for c in classes if facts.feasible.get(c.name) is False]
    if impossible:
        told = []
        for slo_class in impossible:
            earliest_s = facts.fleet.earliest_first_token_s(slo_class.name)
            target_s = slo_class.ttft.target_s
            late = earliest_s is not None and target_s is not None and earliest_s > target_s
            told.append(f"{slo_class.name} ({'ttft' if late else 'tpot or ttft'})")
        text = (
            f"not even an idle replica can keep the promise of {', '.join(told)}; loosen it, or "
            "serve a smaller model or faster hardware"
        )
        return Condition(Type.SLO_FEASIBLE, FALSE, Why.INFEASIBLE, text)
    unknown = [c.name for c in classes if c.name not in facts.feasible]
    if unknown:
        text = f"no replica has told about {', '.join(unknown)} yet"
        return Condition(Type.SLO_FEASIBLE, UNKNOWN, Why.NO_REPORT, text)
    text = "an idle replica can keep every promise"
    return Condition(Type.SLO_FEASIBLE, TRUE, Why.FEASIBLE, text)


def slo_met(facts: Facts) -> Condition:
    """Five minutes at or above the objective, for every class with enough requests."""
    judged, missed = 0, []
    for slo_class in facts.spec.classes:
        tally = facts.fleet.last_5m(slo_class.name)
        if tally.total < MIN_REQUESTS or tally.attainment is None:
            continue
        judged += 1
        if tally.attainment < slo_class.objective:
            missed.append(
                f"{slo_class.name} {tally.attainment:.1%} of {tally.total} requests "
                f"(objective {slo_class.objective:.4g})"
            )
    if missed:
        limit = facts.scaling.constraint
        text = f"in the last 5 minutes: {'; '.join(missed)}"
        if limit != "None":
            text += f"; most failed on {limit}"
        return Condition(Type.SLO_MET, FALSE, Why.MISSED, text)
    if not judged:
        text = f"no class had {MIN_REQUESTS} requests in the last 5 minutes"
        return Condition(Type.SLO_MET, UNKNOWN, Why.NO_TRAFFIC, text)
    return Condition(Type.SLO_MET, TRUE, Why.MET, f"{judged} classes with traffic are at or above")


def capacity_limited(facts: Facts) -> Condition:
    """More replicas are wanted than are allowed, or than fit."""
    scaling, spec = facts.scaling, facts.spec
    most = spec.autoscaling.max_replicas if spec.autoscaling else spec.replicas
    if facts.trouble is not None and facts.trouble.reason is Why.UNSCHEDULABLE:
        return Condition(Type.CAPACITY_LIMITED, TRUE, Why.UNSCHEDULABLE, f"{facts.trouble.message}")
    if scaling.unbounded > most:
        where = "autoscaling.maxReplicas" if spec.autoscaling else "replicas"
        limit = "" if scaling.constraint == "None" else f"; requests fail on {scaling.constraint}"
        text = f"{scaling.unbounded} replicas are wanted ({scaling.why}), {where} is {most}{limit}"
        return Condition(Type.CAPACITY_LIMITED, TRUE, Why.MAX_REPLICAS, text)
    return Condition(Type.CAPACITY_LIMITED, FALSE, Why.SUFFICIENT, "no more replicas are wanted")


def monitoring_ready(facts: Facts) -> Condition:
    """Monitors and rules exist, or their optional kinds don't (said which)."""
    declared, kinds = facts.spec.observability, facts.observed.kinds
    wanted = {POD_MONITOR: declared.monitors, PROMETHEUS_RULE: declared.rules}
    asked = {kind: auto for kind, auto in wanted.items() if auto is not Auto.NEVER}
    if not asked:
        text = "observability.monitors and observability.rules are Never"
        return Condition(Type.MONITORING_READY, TRUE, Why.DISABLED, text)
    missing = [kind for kind in asked if kind.kind not in kinds]
    if missing:
        told = " and ".join(f"{kind.kind} ({kind.api_version})" for kind in missing)
        text = (
            f"the cluster has no {told}, or the operator may not use it; install the Prometheus "
            "operator, or let Prometheus scrape the pods' /metrics itself"
        )
        status = FALSE if any(asked[kind] is Auto.ALWAYS for kind in missing) else TRUE
        return Condition(Type.MONITORING_READY, status, Why.KIND_MISSING, text)
    there = {ref.kind for ref in facts.observed.own}
    coming = [kind.kind for kind in asked if kind.kind not in there]
    text = f"{' and '.join(coming)} is being made" if coming else "Prometheus will find the service"
    status = FALSE if coming else TRUE
    return Condition(Type.MONITORING_READY, status, Why.MONITOR_EXISTS, text)
