"""What both servers export of the classes: target lines, and counters that start at 0."""

from sloserve.errors import Reason
from sloserve.http.exporter import Exporter
from sloserve.slo.service import ServiceSpec

PROMISES = ("ttft", "tpot", "all")
BINDING = (Reason.TTFT, Reason.TPOT, Reason.KV, Reason.REPLICAS)
"""What keeps a request from its promise on an ordinary day: these series exist from the start."""
OUTCOMES = (
    ("admitted", "finished", Reason.NONE),
    ("deferred", "finished", Reason.NONE),
    *(("degraded", "finished", reason) for reason in BINDING),
    *(("declined", "refused", reason) for reason in BINDING),
)


def declare_classes(spec: ServiceSpec, to: Exporter, *, counters: str) -> None:
    """
    Every class's targets, and its counters at 0; `counters` is the prefix of their names.

    A class that is gone keeps its counters (they are history) and loses its target lines.
    """
    targets, objectives = "sloserve_slo_target_seconds", "sloserve_slo_objective_ratio"
    to.clear(targets)
    to.clear(objectives)
    for c in spec.classes:
        ttft_s = c.ttft.target_s if c.ttft.target_s is not None else c.ttft.floor_s
        if ttft_s > 0:  # a slowdown without a floor has no target that is a number of seconds
            to.set(targets, spec.name, c.name, "ttft", value=ttft_s)
        to.set(targets, spec.name, c.name, "tpot", value=c.tightest_stage_tpot_s)
        to.set(objectives, spec.name, c.name, value=c.objective)
        labels = (spec.name, spec.model.served_name, c.name)
        to.add(f"{counters}slo_requests_total", *labels, amount=0)
        for promise in PROMISES:
            to.add(f"{counters}slo_attained_total", *labels, promise, amount=0)
        for decision, outcome, reason in OUTCOMES:
            outcome_labels = (decision, outcome, reason.value)
            to.add(f"{counters}requests_total", *labels, *outcome_labels, amount=0)
