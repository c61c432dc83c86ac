"""
One request's life: find a replica, ask it, pass its answer on.

Nothing goes to the client before the first event of a replica: until then a decline or a death
sends the request to the next one, with its original arrival time.
"""

import asyncio

import aiohttp

from sloserve.errors import Declined, NotFound, Reason, SloserveError, Unavailable
from sloserve.gateway.core import Core
from sloserve.gateway.passing import count, end_broken, pass_refusal, pass_stream, pass_whole
from sloserve.gateway.promise import MISSED, NOT_COUNTED, Judgement, cancelled_whole
from sloserve.gateway.replicas import Upstream
from sloserve.gateway.reply import Receive, Send, refuse
from sloserve.gateway.stream import Died
from sloserve.gateway.telling import (
    another_is_asked,
    answered,
    decided,
    hop_attributes,
    replica_died,
)
from sloserve.gateway.ticket import Ticket
from sloserve.http.errors import refusal
from sloserve.http.tracing import NO_SPAN, Span
from sloserve.routing import Ask, Choice
from sloserve.slo import Decision
from sloserve.wire import (
    AGE_MS,
    LAST_HOP,
    PROMPT_TOKENS,
    REPORT,
    SLO_DECISION,
    SLO_REASON,
    SLO_TTFT_MS,
)

HOP = "ask replica"
LOOK_AGAIN_S = 1.0
"""Who waits here asks the router again after so many seconds even without a new report."""
RETRY_AFTER_S = 5.0
"""For clients that come while no replica is ready: a model takes seconds to load, or more."""
MAX_DEATHS = 3
"""A request under which so many replicas died is the likely cause: it goes no further."""


class Exchange:
    """One request between a client and the replicas."""

    def __init__(self, core: Core, ticket: Ticket, send: Send) -> None:
        self.ticket = ticket
        self._core = core
        self._send = send
        self._task: asyncio.Task[object] | None = None
        self._ended_by: Reason | None = None
        self._lost = False
        self._hop: Span = NO_SPAN

    def end(self, by: Reason) -> None:
        """Stop it now: the client is gone or reads nothing, or this gateway is out of time."""
        if not self.ticket.counted and self._task is not None and self._ended_by is None:
            self._ended_by = by
            self._task.cancel()

    def lose(self) -> None:
        """The replica that works on it is gone."""
        if not self.ticket.counted and self._task is not None:
            self._lost = True
            self._task.cancel()

    async def run(self, receive: Receive) -> None:
        """Serve it to its end; it is counted exactly once."""
        self._task = asyncio.current_task()
        self._core.open.add(self)
        self._core.ledger.arrived(self.ticket.offer.slo_class, num_prompt=self.ticket.num_prompt)
        watcher = asyncio.create_task(self._watch(receive))
        try:
            await self._serve()
        except SloserveError as error:
            await self._refuse(error)
        except asyncio.CancelledError:
            if self._ended_by is None or self._task is None:
                raise
            self._task.uncancel()
            await self._cut_off(self._ended_by)
        finally:
            self._core.open.discard(self)
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(Reason.CLIENT_GONE)

    async def _serve(self) -> None:
        core = self._core
        while True:
            views = core.replicas.views(self.ticket.seen.model)
            choice = core.router(self._ask(), views, core.state)
            upstream = core.replicas.known.get(choice.replica or "")
            if upstream is None:
                await self._wait(choice)
            elif await self._attempt(upstream, last_hop=choice.last_hop):
                return

    def _ask(self) -> Ask:
        core, ticket, offer = self._core, self.ticket, self.ticket.offer
        known = core.replicas.known
        own = core.spec.slo_class(offer.slo_class)
        tightened_s = 0.0
        if own is not None and own.ttft.target_s and offer.ttft.target_s:
            tightened_s = own.ttft.target_s - offer.ttft.target_s
        return Ask(
            slo_class=offer.slo_class,
            num_prompt_tokens=ticket.num_prompt,
            ttft=offer.ttft,
            tpot_s=min(stage.tpot_s for stage in offer.stages),
            age_s=core.clock() - ticket.arrival_s,
            tightened_s=tightened_s,
            max_prompt_tokens=core.spec.model.max_model_len,
            session=ticket.session,
            prefixes=ticket.prefixes,
            exclude=frozenset(
                address
                for address, at_s in ticket.refused_s.items()
                if address in known and known[address].report_s <= at_s
            ),
            hops=ticket.num_hops,
            max_hops=core.max_hops,
        )

    async def _wait(self, choice: Choice) -> None:
        """Until the next report: while slack is left, or while a replica is coming."""
        core, ticket = self._core, self.ticket
        if ticket.seen.model is not None:
            core.check_model(ticket.seen.model)
        now_s = core.clock()
        timeout_s = choice.pend_s
        if timeout_s <= 0.0:
            hold_s = core.spec.gateway.hold_timeout_s
            timeout_s = ticket.arrival_s + hold_s - now_s
            if not core.replicas_coming:
                text = f"service {core.spec.name!r} has no replicas, and none is coming"
                raise Unavailable(Reason.REPLICAS, text, retry_after_s=RETRY_AFTER_S)
            if timeout_s <= 0.0:
                text = f"no replica became ready in the {hold_s:g} s that requests are held"
                reason = choice.reason or Reason.REPLICAS
                raise Unavailable(reason, text, retry_after_s=RETRY_AFTER_S)
        due_s = ticket.arrival_s + ticket.offer.ttft.resolve_s(self._zero_load_s())
        core.ledger.pending(ticket.offer.slo_class, 1)
        try:
            await core.room.wait(
                due_s=due_s, timeout_s=min(timeout_s, LOOK_AGAIN_S), num_before=ticket.num_waits
            )
        finally:
            core.ledger.pending(ticket.offer.slo_class, -1)
            ticket.num_waits += 1
            ticket.waited_s += core.clock() - now_s

    async def _attempt(self, upstream: Upstream, *, last_hop: bool) -> bool:
        """Ask one replica; True when the client has its answer, False: go on with another."""
        core, ticket = self._core, self.ticket
        ticket.num_hops += 1
        upstream.begin(self, ticket.num_prompt)
        url = upstream.chat_url if ticket.chat else upstream.completions_url
        hop = self._hop = ticket.span.client(HOP, hop_attributes(upstream, ticket))
        try:
            sent_s = core.clock()
            headers = {
                **ticket.forwarded,
                **hop.headers,
                AGE_MS: f"{(sent_s - ticket.arrival_s) * 1e3:.3f}",
                LAST_HOP: "1" if last_hop else "0",
            }
            async with core.session.post(
                url, data=ticket.body, headers=headers, allow_redirects=False
            ) as response:
                return await self._answer(upstream, response, last_hop=last_hop, sent_s=sent_s)
        except aiohttp.ClientConnectorError as error:
            ticket.num_hops -= 1  # it was never asked
            core.replicas.fail(upstream, f"can't connect: {error.os_error.strerror or error}")
            return await self._died(upstream, error)
        except (Died, aiohttp.ClientError, OSError, TimeoutError) as error:
            return await self._died(upstream, error)
        except asyncio.CancelledError as error:
            if not self._lost or self._ended_by is not None or self._task is None:
                raise
            self._task.uncancel()
            self._lost = False
            return await self._died(upstream, error)
        finally:
            hop.end()
            upstream.end(self)

    async def _answer(
        self,
        upstream: Upstream,
        response: aiohttp.ClientResponse,
        *,
        last_hop: bool,
        sent_s: float,
    ) -> bool:
        core, ticket, headers = self._core, self.ticket, response.headers
        decision = _decision(headers.get(SLO_DECISION))
        told = headers.get(REPORT)
        core.replicas.heard_header(upstream, told, declined=response.status != 200)
        ticket.replica = upstream.replica
        reason = _reason(headers.get(SLO_REASON))
        answered(self._hop, response.status, decision=decision, reason=reason)
        if response.status == 200 or decision is Decision.DECLINED:
            core.state.asked(declined=decision in (Decision.DECLINED, Decision.DEGRADED))
        if response.status == 503 or (decision is Decision.DECLINED and not last_hop):
            ticket.refused_s[upstream.address] = core.clock()
            await response.read()  # so that the connection can be used again
            another_is_asked(ticket, reason=reason, status=response.status)
            return False
        if response.status == 404 and self._may_be_served_elsewhere(upstream):
            await response.read()
            ticket.num_hops -= 1  # it was the wrong one to ask
            another_is_asked(ticket, reason=reason, status=response.status)
            return False
        told_s = _seconds(headers.get(SLO_TTFT_MS))
        ticket.promised(told_ttft_s=told_s, zero_load_s=self._zero_load_s())
        if decision is None and response.status == 200:
            decision = Decision.ADMITTED
        if decision is not None:
            ticket.decided(decision, reason)
        decided(ticket, response.status, headers)
        if response.status != 200:
            await pass_refusal(core, ticket, self._send, response)
            return True
        self._learn(upstream, headers.get(PROMPT_TOKENS, ""))
        streamed = headers.get("content-type", "").startswith("text/event-stream")
        pass_on = pass_stream if streamed else pass_whole
        await pass_on(core, ticket, self._send, response, sent_s=sent_s)
        return True

    def _may_be_served_elsewhere(self, upstream: Upstream) -> bool:
        """
        The replica does not know the model's name, which is good here: it is one that is replaced,
        or already new. Whether another one knows it, or will.
        """
        model = self.ticket.seen.model
        if model is None:
            return False
        upstream.refused_models.add(model)
        return self._core.may_serve(model)

    def _learn(self, upstream: Upstream, prompt_tokens: str) -> None:
        """What the replica told of the prompt serves the next estimate."""
        ticket, state = self.ticket, self._core.state
        if not prompt_tokens.isdecimal():
            return
        ticket.num_prompt = int(prompt_tokens)
        if not ticket.seen.num_ids:
            state.tokens_per_char.observe(len(ticket.seen.text), ticket.num_prompt)
        state.affinity.remember(
            upstream.address,
            session=ticket.session,
            prefixes=ticket.prefixes,
            num_prompt_tokens=ticket.num_prompt,
        )

    async def _died(self, upstream: Upstream, error: BaseException) -> bool:
        """Nothing sent yet: go on with another replica. Else the stream ends with an error."""
        ticket = self.ticket
        ticket.num_deaths += not isinstance(error, aiohttp.ClientConnectorError)
        problem = str(error) or type(error).__name__
        replica_died(self._hop, ticket, upstream, problem=problem)
        if ticket.sent:
            text = f"replica {ticket.replica} was lost in the middle of this answer"
            await end_broken(
                self._core, ticket, self._send, reason=Reason.REPLICA_LOST, message=text
            )
            return True
        ticket.refused_s[upstream.address] = self._core.clock()
        if ticket.num_deaths >= MAX_DEATHS:
            text = f"{ticket.num_deaths} replicas were lost while they worked on this request"
            raise Unavailable(Reason.REPLICA_LOST, text, retry_after_s=RETRY_AFTER_S)
        return False

    async def _cut_off(self, by: Reason) -> None:
        """Nobody reads any more; or somebody does, and is told that the time here is over."""
        core, ticket = self._core, self.ticket
        if by is not Reason.DRAINING:
            ticket.reason = by
            count(core, ticket, "cancelled", self._judge_cancelled())
            return
        text = f"this gateway goes away, and {core.spec.drain_timeout_s:g} s to finish are over"
        if ticket.sent:
            await end_broken(core, ticket, self._send, reason=by, message=text)
        else:
            await self._refuse(Unavailable(by, text))

    async def _refuse(self, error: SloserveError) -> None:
        """No replica answered."""
        ticket = self.ticket
        if isinstance(error, Declined):
            ticket.decision = Decision.DECLINED
        if isinstance(error, Declined | Unavailable):
            ticket.reason = error.reason
        told = refusal(error)
        ticket.status = told.status
        decided(ticket, told.status, told.headers)
        judged = NOT_COUNTED if isinstance(error, NotFound) else MISSED
        count(self._core, ticket, "refused", judged)
        await refuse(self._send, told, ticket.explanation())

    def _judge_cancelled(self) -> Judgement:
        ticket, now_s = self.ticket, self._core.clock()
        if ticket.judge is not None:
            return ticket.judge.cancelled(now_s)
        promise = ticket.promise or ticket.promised(
            told_ttft_s=None, zero_load_s=self._zero_load_s()
        )
        return cancelled_whole(promise, arrival_s=ticket.arrival_s, at_s=now_s)

    def _zero_load_s(self) -> float:
        """Zero-load time of this prompt by what the replicas report; 0 when none does."""
        for upstream in self._core.replicas.known.values():
            report = upstream.report
            if report is not None:
                per_token_s = report.zero_load_per_token_s
                return report.zero_load_fixed_s + per_token_s * self.ticket.num_prompt
        return 0.0


def _decision(text: str | None) -> Decision | None:
    try:
        return Decision(text or "")
    except ValueError:
        return None


def _reason(text: str | None) -> Reason:
    try:
        return Reason(text or "")
    except ValueError:
        return Reason.NONE


def _seconds(text_ms: str | None) -> float | None:
    try:
        return float(text_ms) / 1e3 if text_ms else None
    except ValueError:
        return None
