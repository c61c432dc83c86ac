"""
`GET /status.json` of the status page: a running service at a glance. Pure.

    {"service", "model", "url", "generation", "version", "atMs",
     "phase": "starting" | "loading" | "serving" | "draining",
     "fresh": whether the gateway answers; if not, this is what it told last,
     "verdict": {"level": "busy" | "idle" | "good" | "warning" | "bad", "title", "text",
                 "sinceMs" | null},
     "troubles": [{"about", "level", "title", "text", "sinceMs"}],    the worst first
     "inflight", "pending", "progress": {process: words},
     "classes": [{"name", "default", "state": "idle" | "kept" | "warning" | "bad", "ttft", "tpot",
                  "ttftTargetMs" | null, "tpotTargetsMs", "objective", "attainment" | null,
                  "attainmentSinceStart" | null, "judged", "judgedSinceStart", "missed",
                  "missedBy": {reason: count}, "pending",
                  "ttftMs": Q, "tpotMs": Q,           Q = {"p50", "p95"} | null
                  "rates": {"offered", "admitted", "deferred", "degraded", "declined", "refused",
                            "goodput"},
                  "frontier": [min, max] | null, "strip": [[judged, kept], ...]}],
     "replicas": [{"name", "address", "state", "problem", "progress", "running", "waiting",
                   "inflight", "freeBlocks", "totalBlocks", "tokenSupplyPerS", "generation",
                   "frontier": {class: [min, max] | null}, "stalled",
                   "stepRatio" | null, "stepModelOff",
                   "steps": [[number, predictedMs, measuredMs, prefillTokens, decodeTokens,
                              bestEffortTokens], ...]}],
     "events": [{"number", "atMs", "line"}]}    the latest first

Times in milliseconds, `atMs` and `sinceMs` as Unix time; shares from 0 to 1; rates in requests per
second over the last minute, null when too little was seen. `attainment`, `judged`, `missed`,
`ttftMs` and `tpotMs` are of the last five minutes; `strip` is in cells of 15 s.
"""

from collections.abc import Callable
from typing import Any

from sloserve import __version__
from sloserve.local.counts import Delta
from sloserve.local.overview import ClassRow, Overview, ReplicaRow
from sloserve.local.risk import WINDOW_S, of_class
from sloserve.local.scene import Scene
from sloserve.local.steps import Step, StepLog

Json = dict[str, Any]

RATES_OVER_S = 60.0
DECISIONS = ("admitted", "deferred", "degraded", "declined", "refused")


def picture(scene: Scene, *, now_s: float, wall_s: float) -> Json:
    """The scene as JSON values; `now_s` is monotonic, `wall_s` Unix time at the same moment."""

    def unix_ms(at_s: float) -> int:
        return round((wall_s - (now_s - at_s)) * 1e3)

    overview, phase = scene.overview or scene.latest, _phase(scene)
    return {
        "service": scene.service,
        "model": overview.model if overview else "",
        "url": scene.url,
        "generation": overview.generation if overview else 0,
        "version": __version__,
        "atMs": round(wall_s * 1e3),
        "phase": phase,
        "fresh": scene.overview is not None,
        "verdict": _verdict(scene, phase, unix_ms),
        "troubles": [
            {
                "about": trouble.about,
                "level": trouble.level.value,
                "title": trouble.title,
                "text": trouble.text,
                "sinceMs": unix_ms(trouble.since_s),
            }
            for trouble in scene.troubles.values()
        ],
        "inflight": overview.num_inflight if overview else 0,
        "pending": overview.num_pending if overview else 0,
        "progress": dict(scene.progress),
        "classes": _classes(scene, overview, now_s) if overview else [],
        "replicas": [_replica(row, scene) for row in overview.replicas] if overview else [],
        "events": [
            {"number": event.number, "atMs": unix_ms(event.at_s), "line": event.line}
            for event in reversed(scene.events)
        ],
    }


def _phase(scene: Scene) -> str:
    if scene.draining:
        return "draining"
    if scene.was_ready:
        return "serving"
    return "starting" if scene.overview is None else "loading"


def _verdict(scene: Scene, phase: str, unix_ms: Callable[[float], int]) -> Json:
    """One sentence for whoever was just called."""
    worst = next(iter(scene.troubles.values()), None)
    if phase != "serving":
        return {"level": "busy", "sinceMs": None, **_busy(scene, phase)}
    if worst is not None:
        return {
            "level": worst.level.value,
            "title": worst.title,
            "text": worst.text,
            "sinceMs": unix_ms(worst.since_s),
        }
    classes = scene.overview.classes if scene.overview else ()
    num_judged = sum(row.num_recent for row in classes)
    if not num_judged:
        text = "No request was judged in the last five minutes."
        return {"level": "idle", "title": "Ready", "text": text, "sinceMs": None}
    num_kept = sum(row.num_recent_kept for row in classes)
    requests = "request" if num_judged == 1 else "requests"
    return {
        "level": "good",
        "title": "Every promise is kept",
        "text": f"{num_kept} of {num_judged} {requests} in the last five minutes; every class is at"
        " or above its objective.",
        "sinceMs": None,
    }


def _busy(scene: Scene, phase: str) -> Json:
    overview = scene.overview
    if phase == "draining":
        left = overview.num_inflight if overview else 0
        return {
            "title": "Draining",
            "text": f"{left} under way; answers finish, then everything stops.",
        }
    words = "; ".join(f"{name}: {told}" for name, told in scene.progress.items())
    title = "Starting" if phase == "starting" else "Loading the model"
    return {"title": title, "text": f"{words or 'processes start'}."}


def _classes(scene: Scene, overview: Overview, now_s: float) -> list[Json]:
    minute, recent = scene.history.over(RATES_OVER_S), scene.history.over(WINDOW_S)
    return [
        {
            "name": row.name,
            "default": row.name == overview.default_class,
            "state": _state(row, overview, scene),
            "ttft": row.ttft,
            "tpot": row.tpot,
            "ttftTargetMs": _ms(row.ttft_target_s),
            "tpotTargetsMs": [_ms(tpot_s) for tpot_s in row.tpot_targets_s],
            "objective": row.objective,
            "attainment": row.attainment,
            "attainmentSinceStart": row.attainment_since_start,
            "judged": row.num_recent,
            "judgedSinceStart": row.num_judged,
            "missed": row.num_recent - row.num_recent_kept,
            "missedBy": recent.missed(row.name),
            "pending": row.num_pending,
            "ttftMs": _quantiles(row.name, recent.ttft_s),
            "tpotMs": _quantiles(row.name, recent.tpot_s),
            "rates": _rates(row, minute),
            "frontier": row.frontier,
            "strip": scene.history.strip(row.name, now_s=now_s),
        }
        for row in overview.classes
    ]


def _state(row: ClassRow, overview: Overview, scene: Scene) -> str:
    trouble = of_class(row, overview, history=scene.history)
    if trouble is not None:
        return trouble.level.value
    return "kept" if row.num_recent else "idle"


def _rates(row: ClassRow, minute: Delta) -> Json:
    elapsed_s = minute.elapsed_s
    return {
        "offered": row.num_arrived / elapsed_s if elapsed_s > 0 else None,
        **{decision: minute.per_s(row.name, decision) for decision in DECISIONS},
        "goodput": minute.goodput_per_s(row.name),
    }


def _quantiles(name: str, of: Callable[[str, float], float | None]) -> Json | None:
    p50_s, p95_s = of(name, 0.5), of(name, 0.95)
    return None if p50_s is None else {"p50": _ms(p50_s), "p95": _ms(p95_s)}


def _replica(row: ReplicaRow, scene: Scene) -> Json:
    log = scene.steps.get(row.address) or StepLog()
    return {
        "name": row.name,
        "address": row.address,
        "state": row.state,
        "problem": row.problem,
        "progress": scene.progress.get(row.name, ""),
        "running": row.num_running,
        "waiting": row.num_waiting,
        "inflight": row.num_inflight,
        "freeBlocks": row.free_blocks,
        "totalBlocks": row.total_blocks,
        "tokenSupplyPerS": round(row.token_supply_per_s, 1),
        "generation": row.generation,
        "frontier": dict(row.frontier),
        "stalled": log.stalled,
        "stepRatio": log.mean_ratio,
        "stepModelOff": log.off,
        "steps": [_step(step) for step in log.steps],
    }


def _step(step: Step) -> list[float]:
    return [
        step.number,
        round(step.predicted_s * 1e3, 2),
        round(step.measured_s * 1e3, 2),
        step.num_prefill_tokens,
        step.num_decode_tokens,
        step.num_best_effort_tokens,
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
