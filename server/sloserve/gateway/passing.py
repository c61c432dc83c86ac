"""Passing a replica's answer on to the client, and judging it on the way."""

import asyncio
import contextlib
import json
from typing import Any

import aiohttp

from sloserve.errors import Reason
from sloserve.gateway.core import Core
from sloserve.gateway.promise import MISSED, NOT_COUNTED, Judgement, StreamJudge, judge_whole
from sloserve.gateway.reply import PASSED_ON, Headers, Send, whole
from sloserve.gateway.stream import Died, Stripper, error_event
from sloserve.gateway.telling import ended
from sloserve.gateway.ticket import Ticket
from sloserve.slo import Decision
from sloserve.wire import STAGE_TOKENS, parse_stage_tokens

NO_DECISION = "none"
END_TIMEOUT_S = 1.0


def count(core: Core, ticket: Ticket, outcome: str, judgement: Judgement) -> None:
    """One request is over; only the first call counts."""
    if ticket.counted:
        return
    ticket.counted = True
    kept = judgement
    if kept.eligible and (ticket.decision is Decision.DEGRADED or outcome != "finished"):
        kept = MISSED
    core.ledger.ended(
        ticket.offer.slo_class,
        decision=ticket.decision or NO_DECISION,
        outcome=outcome,
        reason=ticket.reason,
        judgement=kept,
        num_output=ticket.num_output_sent,
    )
    ended(ticket, outcome, kept)


async def pass_stream(
    core: Core, ticket: Ticket, send: Send, response: aiohttp.ClientResponse, *, sent_s: float
) -> None:
    """
    Pass a stream on. Raises Died, or aiohttp's errors, when the replica breaks it.

    Tokens are timed when their event is here and goes out; what the client does not read is not
    read from the replica either.
    """
    assert ticket.promise is not None
    clock = core.clock
    judge = ticket.judge = StreamJudge(ticket.promise, arrival_s=ticket.arrival_s)
    stripper = Stripper(several=ticket.seen.num_choices > 1)
    read, feed = response.content.readany, stripper.feed
    while not stripper.done:
        data = await read()
        if not data:
            break
        now_s = clock()
        events, marks = feed(data)
        for num_tokens, stage, choice in marks:
            judge.emit(now_s, num_tokens=num_tokens, stage=stage, choice=choice)
        if not events:
            continue
        ticket.sending_since_s = now_s
        first = not ticket.sent
        if first:
            ticket.sent, ticket.status = True, 200
            headers = _headers(ticket, response)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        if stripper.done:  # counted before the client can have it all, and hang up
            _stream_ended(core, ticket, judge, failed=stripper.failed)
        ticket.last_events = events
        more = not stripper.done
        await send({"type": "http.response.body", "body": events, "more_body": more})
        ticket.sending_since_s = None
        if first:
            _passed(core, ticket, sent_s=sent_s, came_s=now_s)
    if stripper.done:
        await _read_to_end(response)
    elif stripper.failed:
        _stream_ended(core, ticket, judge, failed=True)
        await send({"type": "http.response.body", "body": b""})
    else:
        raise Died("the stream has no end mark")


def _stream_ended(core: Core, ticket: Ticket, judge: StreamJudge, *, failed: bool) -> None:
    slo_class = ticket.offer.slo_class
    core.state.finished(slo_class, judge.num_tokens)
    core.ledger.latencies(slo_class, ttft_s=judge.ttft_s, mean_tpot_s=judge.mean_tpot_s)
    if failed:
        count(core, ticket, "failed", MISSED)
    else:
        count(core, ticket, "finished", judge.finished(core.clock()))


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """Read what follows the end mark (nothing), so that the connection can be used again."""
    content = response.content
    if content.at_eof():
        return
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(END_TIMEOUT_S):
            while await content.readany():
                pass


async def pass_whole(
    core: Core, ticket: Ticket, send: Send, response: aiohttp.ClientResponse, *, sent_s: float
) -> None:
    """Pass an answer on that is not streamed, due as a whole."""
    assert ticket.promise is not None
    body = await response.read()
    done_s = core.clock()
    choices = _choices(ticket, response.headers.get(STAGE_TOKENS), body)
    judgement = judge_whole(
        ticket.promise, arrival_s=ticket.arrival_s, done_s=done_s, choices=choices
    )
    ticket.sent, ticket.status = True, 200
    ticket.sending_since_s = done_s
    ticket.num_output = sum(sum(stages) for stages in choices)
    core.state.finished(ticket.offer.slo_class, ticket.num_output)
    count(core, ticket, "finished", judgement)
    await whole(send, 200, _headers(ticket, response), body)
    _passed(core, ticket, sent_s=sent_s, came_s=done_s)


async def pass_refusal(
    core: Core, ticket: Ticket, send: Send, response: aiohttp.ClientResponse
) -> None:
    """Pass on what the replica refused: a decline is missed, bad input is not counted."""
    body = await response.read()
    ticket.sent, ticket.status = True, response.status
    if ticket.decision is Decision.DECLINED:
        count(core, ticket, "refused", MISSED)
    elif response.status < 500:
        count(core, ticket, "refused", NOT_COUNTED)
    else:
        count(core, ticket, "failed", MISSED)
    await whole(send, response.status, _headers(ticket, response), body)


async def end_broken(
    core: Core, ticket: Ticket, send: Send, *, reason: Reason, message: str
) -> None:
    """The answer can't go on: say why, end the stream."""
    ticket.reason = reason
    event = error_event(
        ticket.last_events,
        message=message,
        code=reason.value,
        num_choices=ticket.seen.num_choices,
        chat=ticket.chat,
    )
    count(core, ticket, "failed", MISSED)
    await send({"type": "http.response.body", "body": event})


def _passed(core: Core, ticket: Ticket, *, sent_s: float, came_s: float) -> None:
    """The time from arrival to the first byte, less waiting here and the replica's own time."""
    added_s = (core.clock() - came_s) + (sent_s - ticket.arrival_s - ticket.waited_s)
    core.ledger.passed(added_s=max(0.0, added_s), num_hops=ticket.num_hops)


def _headers(ticket: Ticket, response: aiohttp.ClientResponse) -> Headers:
    headers = ticket.explanation()
    for name in PASSED_ON:
        if (value := response.headers.get(name)) is not None:
            headers.append((name.encode(), value.encode("latin-1", "replace")))
    return headers


def _choices(ticket: Ticket, told: str | None, body: bytes) -> list[list[int]]:
    """
    Output tokens per choice and stage.

    As the replica told, else from `usage`: reasoning tokens are the first of several stages, and
    choices share alike.
    """
    if told and (counts := parse_stage_tokens(told)):
        return counts
    num_choices = max(1, ticket.seen.num_choices)
    try:
        usage: dict[str, Any] = json.loads(body)["usage"]
        total = int(usage["completion_tokens"])
        details = usage.get("completion_tokens_details") or {}
        num_thinking = int(details.get("reasoning_tokens") or 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return [[0]]
    if num_thinking and len(ticket.offer.stages) > 1:
        return [[num_thinking // num_choices, (total - num_thinking) // num_choices]] * num_choices
    return [[total // num_choices]] * num_choices
