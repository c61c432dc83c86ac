"""From a request for text to its answer: read, check, promise, hand to the engine."""

import uuid

from fastapi import Request, Response

from sloserve.engine.events import Generate
from sloserve.errors import BadInput, SloserveError, Unavailable
from sloserve.frontend import telling
from sloserve.frontend.answering import Answering
from sloserve.frontend.ask import Ask, read_ask, request_id
from sloserve.frontend.choices import Choices
from sloserve.frontend.figures import refused
from sloserve.frontend.latencies import Latencies
from sloserve.frontend.prompts import (
    Prompt,
    Wish,
    chat_prompt,
    completion_prompts,
    sampling_of,
    template_options,
)
from sloserve.frontend.replica import Replica, Served
from sloserve.frontend.sequences import Job, Sequences
from sloserve.frontend.wayout import WayOut
from sloserve.frontend.wishes import check_shape, wish_of
from sloserve.http.bodies import ChatBody, CompletionBody, parse, turns
from sloserve.http.errors import refusal
from sloserve.http.exporter import Exporter
from sloserve.http.reading import read_body
from sloserve.http.tracing import NO_TRACER, Span, Tracer
from sloserve.logs import bind
from sloserve.slo import Promise
from sloserve.wire import (
    PROMPT_TOKENS,
    REQUEST_ID,
    SLO_CLASS,
    SLO_NOTE,
    SLO_REPLICA,
    SLO_TTFT_MS,
)

MAX_CHOICES_TOKENS = 1_000_000
"""Prompt tokens times answers in one request."""


class Generations:
    """What the two generating routes share."""

    def __init__(self, replica: Replica, exporter: Exporter, tracer: Tracer = NO_TRACER) -> None:
        self._tracer = tracer
        self.replica = replica
        self.exporter = exporter
        self.way_out = WayOut(self._tell_way_out)

    async def answer(
        self, request: Request, kind: type[ChatBody] | type[CompletionBody]
    ) -> Response:
        """The response to one request; refusals raise nothing, they are responses as well."""
        arrived_s = self.replica.clock()
        id_ = request_id(request.headers)
        slo_class = request.headers.get(SLO_CLASS, "")
        span = self._tracer.server(f"POST {request.url.path}", request.headers)
        bind(request_id=id_, trace_id=span.trace_id)
        try:
            return await self._prepare(request, kind, id_=id_, arrived_s=arrived_s, span=span)
        except SloserveError as error:
            reason = error.reason.value if isinstance(error, Unavailable) else ""
            refused(self.replica, self.exporter, reason=reason, slo_class=slo_class)
            told = refusal(error)
            telling.refused(span, told)
            response = told.response()
            response.headers[REQUEST_ID] = id_
            response.headers[SLO_REPLICA] = self.replica.name
            if self.replica.draining:
                response.headers["connection"] = "close"
            return response
        except BaseException as error:
            span.fail(type(error).__name__)
            span.end()
            raise

    async def _prepare(
        self,
        request: Request,
        kind: type[ChatBody] | type[CompletionBody],
        *,
        id_: str,
        arrived_s: float,
        span: Span,
    ) -> Response:
        replica = self.replica
        body = parse(kind, await read_body(request))
        adapter = replica.adapter_of(body.model)
        ask = read_ask(replica.spec, request.headers, id_=id_, now_s=arrived_s)
        served = replica.served
        calling = check_shape(body, served)
        if isinstance(body, ChatBody):
            options = template_options(body)
            prompts = [await chat_prompt(turns(body.messages), options, served.tokenizer)]
        else:
            prompts = await completion_prompts(body, served)
        longest = max(len(prompt.tokens) for prompt in prompts)
        promise = ask.offer.promise(lambda: served.step_model.prefill_s(longest))
        wish = await wish_of(body, prompts, served, calling=calling, promise=promise)
        jobs = _jobs(body, prompts, served, ask=ask, promise=promise, wish=wish, adapter=adapter)
        latencies = Latencies(
            self.exporter,
            model=replica.spec.model.served_name,
            promise=promise,
            arrival_s=ask.arrival_s,
            num_sequences=len(jobs),
            lags=span.recording,
        )
        choices = Choices(
            body,
            jobs,
            served.tokenizer,
            request_id=id_,
            model=adapter or replica.spec.model.served_name,
            annotate=ask.annotate,
            manner=wish.manner,
        )
        return Answering(
            replica,
            Sequences(served.engine, jobs),
            choices,
            latencies,
            self.way_out,
            promise=promise,
            headers=self._headers(ask, promise, choices.num_prompt),
            streamed=bool(body.stream),
            tell_gateway=ask.through_gateway,
            span=span,
        )

    def _headers(self, ask: Ask, promise: Promise, num_prompt: int) -> dict[str, str]:
        headers = {
            REQUEST_ID: ask.request_id,
            SLO_CLASS: promise.slo_class,
            SLO_TTFT_MS: f"{promise.ttft_s * 1e3:.3f}",
            SLO_REPLICA: self.replica.name,
            PROMPT_TOKENS: str(num_prompt),
        }
        if ask.notes:
            headers[SLO_NOTE] = "; ".join(ask.notes)
        return headers

    def _tell_way_out(self, p99_s: float) -> None:
        served = self.replica.loaded
        if served is not None and served.engine.scheduler is not None:
            served.engine.scheduler.way_out_s = p99_s


def _jobs(
    body: ChatBody | CompletionBody,
    prompts: list[Prompt],
    served: Served,
    *,
    ask: Ask,
    promise: Promise,
    wish: Wish,
    adapter: str,
) -> list[Job]:
    """One job per answer: all answers to the first prompt, then to the second, ..."""
    total = sum(len(prompt.tokens) for prompt in prompts) * body.num_choices
    if total > MAX_CHOICES_TOKENS:
        raise BadInput(
            f"prompts times n come to {total} tokens; allowed: {MAX_CHOICES_TOKENS}", field="n"
        )
    key = uuid.uuid4().hex
    jobs: list[Job] = []
    for prompt in prompts:
        for choice in range(body.num_choices):
            generate = Generate(
                key=f"{key}-{len(jobs)}",
                prompt=prompt.tokens,
                sampling=sampling_of(body, prompt, served, choice=choice, wish=wish),
                promise=promise,
                arrival_s=ask.arrival_s,
                last_hop=ask.last_hop,
                cache_salt=body.cache_salt or "",
                adapter=adapter,
                streamed=bool(body.stream),
                request_id=ask.request_id,
            )
            jobs.append(Job(len(jobs), prompt, generate))
    return jobs
