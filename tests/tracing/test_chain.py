"""One trace per request, across a real gateway and a real replica."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

Make = Callable[..., contextlib.AbstractAsyncContextManager[Any]]

SERVER = "POST /v1/chat/completions"
HOP = "ask replica"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def the_one(spans: list[ReadableSpan]) -> ReadableSpan:
    (span,) = spans
    return span


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def told(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return dict(span.attributes)


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_a_request_is_one_trace_across_gateway_and_replica(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            headers = {"x-request-id": "req-1"}
            answer = await it.ask(headers=headers, stream=True, max_tokens=5)
            assert answer.status == 200
            await it.all_told()

            server = the_one(it.at_gateway.of(SERVER, SpanKind.SERVER))
            hop = the_one(it.at_gateway.of(HOP, SpanKind.CLIENT))
            replica = the_one(it.at_replicas.of(SERVER, SpanKind.SERVER))
            parts = {name: the_one(it.at_replicas.of(name)) for name in ("prefill", "decode")}
            everything = [*it.at_gateway.spans, *it.at_replicas.spans]
            assert {span.context.trace_id for span in everything} == {server.context.trace_id}
            assert server.parent is None
            assert parent_of(hop) == server.context.span_id
            assert parent_of(replica) == hop.context.span_id
            assert {parent_of(part) for part in parts.values()} == {replica.context.span_id}

            seen = told(server)
            assert seen["sloserve.slo_class"] == "chat"
            assert seen["sloserve.decision"] == "admitted"
            assert seen["sloserve.reason"] == ""
            assert seen["sloserve.hops"] == 1
            assert seen["sloserve.attained"] is True
            assert seen["sloserve.outcome"] == "finished"
            assert seen["sloserve.request_id"] == "req-1"
            assert seen["gen_ai.usage.output_tokens"] == 5
            assert seen["http.response.status_code"] == 200
            assert seen["sloserve.ttft_s"] > 0
            assert told(hop)["sloserve.replica"] == "r0"
            assert told(hop)["sloserve.decision"] == "admitted"

            there = told(replica)
            assert there["sloserve.slo_class"] == "chat"
            assert there["sloserve.decision"] == "admitted"
            assert there["sloserve.request_id"] == "req-1"
            assert there["gen_ai.usage.input_tokens"] == seen["gen_ai.usage.input_tokens"] > 0
            assert there["gen_ai.usage.cache_read.input_tokens"] == 0
            assert there["gen_ai.usage.output_tokens"] == 5
            assert there["gen_ai.response.finish_reasons"] == ("length",)
            assert 0 < there["sloserve.ttft_s"] < seen["sloserve.ttft_s"]
            assert there["sloserve.worst_lag_s"] < 0
            assert there["sloserve.preemptions"] == 0

    asyncio.run(story())


def test_the_parts_of_a_replicas_span_follow_each_other_on_the_engines_clock(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            await it.ask(max_tokens=4)
            await it.all_told()
            server = the_one(it.at_replicas.of(SERVER, SpanKind.SERVER))
            queue, prefill, decode = (
                times(the_one(it.at_replicas.of(name))) for name in ("queue", "prefill", "decode")
            )
            begin, end = times(server)
            (event,) = server.events
            assert event.name == "first token"
            assert queue[1] == prefill[0]
            assert prefill[1] == decode[0] == event.timestamp
            assert queue[0] < queue[1] <= prefill[1] < decode[1]
            apart_ns = 1e9  # wall and monotonic clock are read one after the other
            assert begin - apart_ns <= queue[0] < decode[1] <= end + apart_ns

    asyncio.run(story())


def test_a_request_that_gave_way_says_how_often(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            scheduler = it.replicas[0].loaded.engine.scheduler
            schedule = scheduler.schedule

            def preempting(now_s: float) -> Any:
                batch = schedule(now_s)
                for row in batch.rows if batch is not None else ():
                    row.request.num_preemptions = 2
                return batch

            scheduler.schedule = preempting
            await it.ask(max_tokens=3)
            await it.all_told()
            server = the_one(it.at_replicas.of(SERVER, SpanKind.SERVER))
            assert told(server)["sloserve.preemptions"] == 2

    asyncio.run(story())


def test_a_clients_trace_is_continued(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}
            await it.ask(headers=headers, max_tokens=2)
            await it.all_told()
            server = the_one(it.at_gateway.of(SERVER, SpanKind.SERVER))
            assert parent_of(server) == int(PARENT, 16)
            replica = the_one(it.at_replicas.of(SERVER, SpanKind.SERVER))
            assert replica.context.trace_state.get("vendor") == "x"
            everything = [*it.at_gateway.spans, *it.at_replicas.spans]
            assert {span.context.trace_id for span in everything} == {int(TRACE, 16)}
            assert len(everything) >= 5

    asyncio.run(story())


def test_a_client_that_samples_nothing_gets_no_spans(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            answer = await it.ask(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}, max_tokens=2)
            assert answer.status == 200
            await it.all_told()
            assert it.at_gateway.spans == it.at_replicas.spans == []

    asyncio.run(story())


def test_a_bad_traceparent_begins_a_new_trace(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            headers = {"traceparent": "00-nonsense", "tracestate": "vendor=x"}
            await it.ask(headers=headers, max_tokens=2)
            await it.all_told()
            server = the_one(it.at_gateway.of(SERVER, SpanKind.SERVER))
            assert server.parent is None
            replica = the_one(it.at_replicas.of(SERVER, SpanKind.SERVER))
            assert replica.parent is not None
            assert "vendor" not in replica.context.trace_state

    asyncio.run(story())


def test_a_decline_says_what_binds_and_every_hop_is_a_child(chain: Make) -> None:
    async def story() -> None:
        async with chain(num_replicas=2) as it:
            answer = await it.ask(headers={"x-slo-class": "impossible"})
            assert answer.status == 429
            await it.all_told()
            server = the_one(it.at_gateway.of(SERVER, SpanKind.SERVER))
            seen = told(server)
            assert seen["sloserve.decision"] == "declined"
            assert seen["sloserve.reason"] == "TTFT"
            assert seen["sloserve.attained"] is False
            assert seen["http.response.status_code"] == 429
            hops = it.at_gateway.of(HOP, SpanKind.CLIENT)
            assert len(hops) == seen["sloserve.hops"] >= 1
            assert {parent_of(hop) for hop in hops} == {server.context.span_id}
            replicas = it.at_replicas.of(SERVER, SpanKind.SERVER)
            assert {told(span)["sloserve.decision"] for span in replicas} == {"declined"}
            assert {told(span)["sloserve.reason"] for span in replicas} == {"TTFT"}
            assert server.status.status_code is StatusCode.UNSET  # it is an answer, not an error

    asyncio.run(story())


@contextlib.asynccontextmanager
async def a_port_that_cuts() -> AsyncIterator[tuple[str, int]]:
    """Something that looks like a ready replica, and breaks every answer."""
    app = web.Application()

    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    app.router.add_post("/v1/chat/completions", cut)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host, port = runner.addresses[0][:2]
        yield host, port
    finally:
        await runner.cleanup()


def test_a_hop_that_failed_is_marked_and_the_next_one_answers(chain: Make) -> None:
    async def story() -> None:
        async with a_port_that_cuts() as address, chain(extra=[address]) as it:
            cutting = f"{address[0]}:{address[1]}"
            router = it.core.router

            def there_first(ask: Any, replicas: Any, state: Any) -> Any:
                choice = router(ask, replicas, state)
                if cutting in ask.exclude:
                    return choice
                return type(choice)(replica=cutting, last_hop=False)

            it.core.router = there_first
            answer = await it.ask(max_tokens=2)
            assert answer.status == 200
            await it.all_told()
            hops = it.at_gateway.of(HOP, SpanKind.CLIENT)
            assert [hop.status.status_code for hop in hops] == [StatusCode.ERROR, StatusCode.UNSET]
            assert told(hops[0])["sloserve.hop"] == 1
            server = the_one(it.at_gateway.of(SERVER, SpanKind.SERVER))
            assert told(server)["sloserve.hops"] == 2
            assert server.status.status_code is StatusCode.UNSET

    asyncio.run(story())


def test_a_request_refused_before_it_has_a_class_has_a_span_too(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            answer = await it.ask(headers={"x-slo-class": "no such class"})
            assert answer.status == 400
            await it.all_told()
            server = the_one(it.at_gateway.spans)
            assert told(server)["http.response.status_code"] == 400

    asyncio.run(story())


def test_a_client_that_hangs_up_ends_every_span(chain: Make) -> None:
    async def story() -> None:
        async with chain() as it:
            url = f"{it.url}/v1/chat/completions"
            body = {
                "model": "assistant",
                "messages": [{"role": "user", "content": "Hi"}],
                "stream": True,
                "max_tokens": 20_000,
            }
            async with it.session.post(url, json=body) as response:
                await response.content.readany()
            await it.until(lambda: bool(it.at_replicas.of(SERVER, SpanKind.SERVER)))
            await it.all_told()
            assert told(the_one(it.at_gateway.of(SERVER, SpanKind.SERVER)))[
                "sloserve.outcome"
            ] == "cancelled"  # fmt: skip
            replica = told(the_one(it.at_replicas.of(SERVER, SpanKind.SERVER)))
            assert replica["sloserve.outcome"] == "cancelled"
            assert len(it.at_gateway.of(HOP, SpanKind.CLIENT)) == 1

    asyncio.run(story())


def test_without_a_tracer_a_clients_trace_still_reaches_the_replica(chain: Make) -> None:
    async def story() -> None:
        async with chain(traced=False) as it:
            answer = await it.ask(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}, max_tokens=2)
            assert answer.status == 200
            assert it.at_gateway.spans == it.at_replicas.spans == []

    asyncio.run(story())
