"""
What the log and the trace tell of one request: a line or an attribute per decision.

Nothing here is called per token. Off, it costs a call and a look at a flag.
"""

import logging
from collections.abc import Mapping

from sloserve.errors import Reason
from sloserve.gateway.promise import Judgement
from sloserve.gateway.replicas import Upstream
from sloserve.gateway.ticket import Ticket
from sloserve.http.errors import Refusal
from sloserve.http.tracing import Attributes, Span, Value
from sloserve.slo import Decision
from sloserve.wire import PROMPT_TOKENS

log = logging.getLogger(__name__)


def refused(span: Span, told: Refusal) -> None:
    """Refused before it had a class: a bad key, a bad body. The message may quote it: not told."""
    why = str(told.error.get("code") or told.error.get("type"))
    log.info("refused", extra={"status": told.status, "reason": why})
    if span.recording:
        span.set({"http.response.status_code": told.status, "sloserve.reason": why})


def hop_attributes(upstream: Upstream, ticket: Ticket) -> Attributes:
    """Of the request to one replica, as it begins."""
    if not ticket.span.recording:
        return {}
    host, _, port = upstream.address.rpartition(":")
    return {
        "http.request.method": "POST",
        "server.address": host.strip("[]"),
        "server.port": int(port),
        "sloserve.replica": upstream.replica,
        "sloserve.hop": ticket.num_hops,
    }


def answered(hop: Span, status: int, *, decision: Decision | None, reason: Reason) -> None:
    """What one replica said."""
    if hop.recording:
        told: dict[str, Value] = {"http.response.status_code": status}
        if decision is not None:
            told["sloserve.decision"] = decision.value
        if reason:
            told["sloserve.reason"] = reason.value
        hop.set(told)
        if status >= 500:
            hop.fail(f"answered {status}")


def another_is_asked(ticket: Ticket, *, reason: Reason, status: int) -> None:
    """A replica declined, or can't serve now, and was not the last one."""
    log.info(
        "declined by a replica, another is asked",
        extra={
            "slo_class": ticket.offer.slo_class,
            "reason": reason.value,
            "replica": ticket.replica,
            "status": status,
            "hops": ticket.num_hops,
        },
    )


def replica_died(hop: Span, ticket: Ticket, upstream: Upstream, *, problem: str) -> None:
    """It broke its answer, or never gave one."""
    hop.fail(problem)
    log.warning(
        "replica died, the stream is broken" if ticket.sent else "replica died",
        extra={
            "slo_class": ticket.offer.slo_class,
            "replica": upstream.replica,
            "address": upstream.address,
            "error": problem,
            "hops": ticket.num_hops,
            "deaths": ticket.num_deaths,
            "output_tokens": ticket.num_output_sent,
        },
    )


def decided(ticket: Ticket, status: int, headers: Mapping[str, str]) -> None:
    """
    What becomes of the promise, or the status without one. `headers` of the answer.

    Admitted at once is nothing to ask about: told for debugging only.
    """
    level = logging.DEBUG if ticket.decision is Decision.ADMITTED else logging.INFO
    if not log.isEnabledFor(level):
        return
    prompt_tokens = headers.get(PROMPT_TOKENS, "")
    log.log(
        level,
        ticket.decision.value if ticket.decision is not None else "refused",
        extra={
            "slo_class": ticket.offer.slo_class,
            "reason": ticket.reason.value,
            "prompt_tokens": int(prompt_tokens) if prompt_tokens.isdecimal() else ticket.num_prompt,
            "replica": ticket.replica,
            "hops": ticket.num_hops,
            "waited_s": ticket.waited_s or None,
            "retry_after_s": _retry_after_s(headers),
            "status": status if status != 200 else None,
        },
    )


def ended(ticket: Ticket, outcome: str, judgement: Judgement) -> None:
    """It is over and counted."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug(
            "ended",
            extra={
                "slo_class": ticket.offer.slo_class,
                "outcome": outcome,
                "reason": ticket.reason.value,
                "attained": judgement.attained if judgement.eligible else None,
                "output_tokens": ticket.num_output_sent,
            },
        )
    if ticket.span.recording:
        ticket.span.set(_attributes(ticket, outcome, judgement))
        if outcome == "failed" or ticket.status >= 500:
            ticket.span.fail(ticket.reason.value or outcome)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after-ms", "")
    return int(text) / 1e3 if text.isdecimal() else None


def _attributes(ticket: Ticket, outcome: str, judgement: Judgement) -> Attributes:
    told: dict[str, Value] = {
        "http.request.method": "POST",
        "gen_ai.operation.name": "chat" if ticket.chat else "text_completion",
        "gen_ai.usage.input_tokens": ticket.num_prompt,
        "gen_ai.usage.output_tokens": ticket.num_output_sent,
        "sloserve.request_id": ticket.request_id,
        "sloserve.slo_class": ticket.offer.slo_class,
        "sloserve.decision": ticket.decision.value if ticket.decision is not None else "none",
        "sloserve.reason": ticket.reason.value,
        "sloserve.outcome": outcome,
        "sloserve.hops": ticket.num_hops,
        "sloserve.replica": ticket.replica,
        "sloserve.waited_s": ticket.waited_s,
    }
    if ticket.status:
        told["http.response.status_code"] = ticket.status
    if judgement.eligible:
        told["sloserve.attained"] = judgement.attained
        told["sloserve.ttft_kept"] = judgement.ttft_kept
        told["sloserve.tpot_kept"] = judgement.tpot_kept
    if ticket.promise is not None:
        told["sloserve.ttft_target_s"] = ticket.promise.ttft_s
    if ticket.judge is not None and ticket.judge.ttft_s is not None:
        told["sloserve.ttft_s"] = ticket.judge.ttft_s
    return told
