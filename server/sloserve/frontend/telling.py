"""
What the log and the trace tell of one request at a replica: at its decision and at its end.

The parts of a span are timed as the `vllm:request_*_time_seconds` metrics are: queue until the
decision is here, prefill until the engine emitted the first token, decode until it emitted the
last one.
"""

import logging

from sloserve.engine.events import Decided
from sloserve.frontend.choices import Choices
from sloserve.frontend.latencies import Latencies
from sloserve.http.errors import Refusal
from sloserve.http.tracing import Span, Value
from sloserve.slo import Decision, Promise

log = logging.getLogger(__name__)


def refused(span: Span, told: Refusal) -> None:
    """Refused before the engine saw it. The message may quote the request: not told."""
    why = str(told.error.get("code") or told.error.get("type"))
    log.info("refused", extra={"status": told.status, "reason": why})
    if span.recording:
        span.set({"http.response.status_code": told.status, "sloserve.reason": why})
        if told.status >= 500:
            span.fail(why)
    span.end()


def decided(event: Decided, *, slo_class: str, num_prompt: int) -> None:
    """The engine decided; `detail` names what binds. Admitted at once: for debugging only."""
    level = logging.DEBUG if event.decision is Decision.ADMITTED else logging.INFO
    if log.isEnabledFor(level):
        log.log(
            level,
            event.decision.value,
            extra={
                "slo_class": slo_class,
                "reason": event.reason.value,
                "detail": event.message,
                "prompt_tokens": num_prompt,
                "retry_after_s": event.retry_after_s or None,
            },
        )


def broken(reason: str, *, num_output: int) -> None:
    """The engine dropped it; its own line says why."""
    log.warning("answer broken", extra={"reason": reason, "output_tokens": num_output})


def ended(
    span: Span,
    event: Decided | None,
    outcome: str,
    *,
    promise: Promise,
    choices: Choices,
    latencies: Latencies,
    begun_s: float,
    status: int,
) -> None:
    """It is over; `begun_s` is when it was handed to the engine, `status` that of its answer."""
    if log.isEnabledFor(logging.DEBUG):
        usage = choices.usage()
        log.debug(
            "ended",
            extra={
                "slo_class": promise.slo_class,
                "outcome": outcome,
                "finish_reason": choices.finish_reasons,
                "prompt_tokens": usage.num_prompt,
                "cached_tokens": usage.num_cached,
                "output_tokens": usage.num_output,
                "preemptions": choices.num_preempted,
                "ttft_s": latencies.ttft_s,
            },
        )
    if span.recording:
        span.set(_attributes(event, outcome, promise, choices, latencies, status))
        _parts(span, latencies, begun_s)
        if outcome == "failed":
            span.fail(event.reason.value if event is not None and event.reason else outcome)
    span.end()


def _parts(span: Span, latencies: Latencies, begun_s: float) -> None:
    tracks = [track for track in latencies.tracks if track.num_tokens]
    first_s = min((track.first_s for track in tracks), default=float("inf"))
    # The word of the decision may reach us after the engine's first token.
    decided_s = min(latencies.decided_s, first_s)
    if decided_s > begun_s:
        span.part("queue", start_s=begun_s, end_s=decided_s)
    if tracks:
        span.part("prefill", start_s=decided_s, end_s=first_s)
        span.event("first token", at_s=first_s)
        span.part("decode", start_s=first_s, end_s=max(track.last_s for track in tracks))


def _attributes(
    event: Decided | None,
    outcome: str,
    promise: Promise,
    choices: Choices,
    latencies: Latencies,
    status: int,
) -> dict[str, Value]:
    usage = choices.usage()
    told: dict[str, Value] = {
        "http.request.method": "POST",
        "gen_ai.usage.input_tokens": usage.num_prompt,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached,
        "gen_ai.usage.output_tokens": usage.num_output,
        "gen_ai.response.finish_reasons": choices.finish_reasons,
        "sloserve.request_id": choices.request_id,
        "sloserve.slo_class": promise.slo_class,
        "sloserve.ttft_target_s": promise.ttft_s,
        "sloserve.tpot_target_s": [str(stage.tpot_s) for stage in promise.stages],
        "sloserve.outcome": outcome,
        "sloserve.decision": event.decision.value if event is not None else "none",
        "sloserve.reason": event.reason.value if event is not None else "",
        "sloserve.preemptions": choices.num_preempted,
    }
    if status:
        told["http.response.status_code"] = status
    if latencies.ttft_s is not None:
        told["sloserve.ttft_s"] = latencies.ttft_s
    if (lag_s := latencies.worst_lag_s()) is not None:
        told["sloserve.worst_lag_s"] = lag_s
    return told
