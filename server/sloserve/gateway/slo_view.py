"""
`GET /v1/slo` and the operator's `/report`: what is promised, kept, and possible now.

    {"service", "model", "generation", "draining", "inflight", "pending", "defaultClass",
     "classes": [{"name", "ttft": {"targetMs"} | {"slowdown", "floorMs"},
                  "stages": [{"name", "tpotMs"}], "objective", "onInfeasible", "weight",
                  "frontier": {"minTokens", "maxTokens"} | null,      the widest of any replica
                  "earliestFirstTokenMs" | null, "pending",
                  "sinceStart": T, "last5m": T,      T = {"eligible", "attained", "ttftKept",
                                                          "tpotKept", "attainment" | null}
                  "lastMinute": {"arrived", "promptTokens", "answered", "outputTokens",
                                 "declined", "degraded", "reasons": {reason: count}}}],
     "replicas": [{"address", "replica", "state", "problem", "ageMs" | null, "inflight", "running",
                   "waiting", "waitingPrefillTokens", "freeBlocks", "totalBlocks",
                   "tokenSupplyPerS", "tightestTpotMs", "generation",
                   "loading": {"phase", "bytesDone", "bytesTotal"},     only while it loads
                   "frontier": {class: {"minTokens", "maxTokens"}}}],
     "sloClasses": the classes as the manifest declares them}

Times in milliseconds, attainment and objective as shares from 0 to 1.
"""

from typing import Any

from sloserve.gateway.core import Core
from sloserve.gateway.ledger import Tally
from sloserve.gateway.replicas import Upstream
from sloserve.routing import FRESH_S
from sloserve.slo import SloClass, service_to_dict
from sloserve.wire import Frontier, Report, demand_to_json

Json = dict[str, Any]


def slo_view(core: Core) -> Json:
    """The whole picture as JSON values."""
    spec = core.spec
    declared: Json = service_to_dict(spec)["spec"]  # type: ignore[assignment]
    return {
        "service": spec.name,
        "model": spec.model.served_name,
        "generation": spec.generation,
        "draining": core.draining,
        "inflight": core.replicas.num_inflight,
        "pending": len(core.room),
        "defaultClass": spec.default_class,
        "classes": [_slo_class(core, slo_class) for slo_class in spec.classes],
        "replicas": [_replica(core, upstream) for upstream in core.replicas.known.values()],
        "sloClasses": declared["sloClasses"],
    }


def _slo_class(core: Core, slo_class: SloClass) -> Json:
    name, ttft = slo_class.name, slo_class.ttft
    live = _live_reports(core)
    frontiers = [f for r in live if (f := r.frontier.get(name)) is not None]
    able = [f for f in frontiers if f.max_tokens >= f.min_tokens]
    widest = max(able or frontiers, key=lambda f: f.max_tokens, default=None)
    earliest = [s for r in live if (s := r.earliest_first_token_s.get(name)) is not None]
    return {
        "name": name,
        "ttft": (
            {"targetMs": ttft.target_s * 1e3}
            if ttft.target_s is not None
            else {"slowdown": ttft.slowdown, "floorMs": ttft.floor_s * 1e3}
        ),
        "stages": [{"name": s.name, "tpotMs": s.tpot_s * 1e3} for s in slo_class.stages],
        "objective": slo_class.objective,
        "onInfeasible": slo_class.on_infeasible.value,
        "weight": slo_class.weight,
        "frontier": _frontier(widest) if widest is not None else None,
        "earliestFirstTokenMs": min(earliest) * 1e3 if earliest else None,
        "pending": core.ledger.num_pending(name),
        "sinceStart": _tally(core.ledger.since_start(name)),
        "last5m": _tally(core.ledger.recent(name)),
        "lastMinute": demand_to_json(core.ledger.last_minute(name)),
    }


def _live_reports(core: Core) -> list[Report]:
    now_s = core.clock()
    return [
        upstream.report
        for upstream in core.replicas.known.values()
        if upstream.report is not None
        and upstream.report.state == "ready"
        and now_s - upstream.report_s <= FRESH_S
    ]


def _tally(tally: Tally) -> Json:
    return {
        "eligible": tally.eligible,
        "attained": tally.attained["all"],
        "ttftKept": tally.attained["ttft"],
        "tpotKept": tally.attained["tpot"],
        "attainment": tally.attainment,
    }


def _frontier(frontier: Frontier) -> Json:
    return {"minTokens": frontier.min_tokens, "maxTokens": frontier.max_tokens}


def _replica(core: Core, upstream: Upstream) -> Json:
    now_s, report = core.clock(), upstream.report
    shown: Json = {
        "address": upstream.address,
        "replica": upstream.replica,
        "state": upstream.state(now_s),
        "problem": upstream.problem,
        "ageMs": round((now_s - upstream.report_s) * 1e3) if report is not None else None,
        "inflight": len(upstream.attempts),
    }
    if report is not None:
        shown |= {
            "running": report.num_running,
            "waiting": report.num_waiting,
            "waitingPrefillTokens": report.waiting_prefill_tokens,
            "freeBlocks": report.free_blocks,
            "totalBlocks": report.total_blocks,
            "tokenSupplyPerS": report.token_supply_per_s,
            "tightestTpotMs": report.tightest_tpot_s * 1e3,
            "generation": report.config_generation,
            "frontier": {name: _frontier(f) for name, f in report.frontier.items()},
        }
    if upstream.loading is not None and upstream.state(now_s) == "loading":
        phase, bytes_done, bytes_total = upstream.loading
        shown["loading"] = {"phase": phase, "bytesDone": bytes_done, "bytesTotal": bytes_total}
    return shown
