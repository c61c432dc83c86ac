"""Builders: classes, records, and a tiny true OpenAI endpoint."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from sloserve.load.records import Ending, Record
from sloserve.slo import Decision, Emission, Promise, SloClass, Stage, Ttft

MakeClass = Callable[..., SloClass]
MakeRecord = Callable[..., Record]


@pytest.fixture
def a_class() -> MakeClass:
    def make(name: str = "chat", ttft_s: float = 1.0, tpot_s: float = 0.1) -> SloClass:
        return SloClass(name=name, ttft=Ttft(target_s=ttft_s), stages=(Stage("decode", tpot_s),))

    return make


@pytest.fixture
def a_record() -> MakeRecord:
    def make(
        *times_s: float,
        slo_class: str = "chat",
        ending: Ending = Ending.FINISHED,
        decision: Decision | None = Decision.ADMITTED,
        reason: str = "",
        ended_s: float | None = None,
    ) -> Record:
        """A request sent at 0 with TTFT 1 s and TPOT 0.1 s, its tokens at `times_s`."""
        return Record(
            number=0,
            slo_class=slo_class,
            prompt_tokens=10,
            output_tokens=len(times_s),
            sent_s=0.0,
            ended_s=max(times_s, default=0.0) if ended_s is None else ended_s,
            ending=ending,
            promise=Promise(slo_class, 1.0, (Stage("decode", 0.1),)),
            decision=decision,
            reason=reason,
            emissions=[Emission(t) for t in times_s],
        )

    return make


@dataclass
class FakeEndpoint:
    """
    Streams one token per event; knows token-id prompts, usage and x-slo headers.

    `first_s` and `gap_s` are its latencies. Requests of class `busy` get 429, of class `broken`
    an error in the middle; `text_only` refuses token ids and ignore_eos.
    """

    first_s: float = 0.0
    gap_s: float = 0.0
    text_only: bool = False
    serial_s: float = 0.0  # one request after the other takes so long
    running_usage: bool = True
    seen: list[dict[str, Any]] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        slo_class = request.headers.get("x-slo-class", "")
        self.seen.append(body | {"class": slo_class})
        prompt = body["prompt"]
        ids = isinstance(prompt, list)
        if self.text_only and (ids or "ignore_eos" in body):
            return web.json_response({"error": {"message": "unknown"}}, status=400)
        if slo_class == "busy":
            headers = {"x-slo-decision": "declined", "x-slo-reason": "TTFT", "retry-after": "1"}
            return web.json_response({"error": {"message": "no"}}, status=429, headers=headers)
        num_prompt = len(prompt) if ids else 2 * len(prompt.split())
        total = body["max_tokens"]
        usage = {"prompt_tokens": num_prompt, "completion_tokens": total}
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": "x"}], "usage": usage})
        headers = {"x-slo-decision": "admitted", "x-slo-ttft-ms": "1000"}
        async with self.turn:
            await asyncio.sleep(self.serial_s)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for number in range(1, total + 1):
            await asyncio.sleep(self.first_s if number == 1 else self.gap_s)
            event: dict[str, Any] = {"choices": [{"text": "x", "finish_reason": None}]}
            if number == total:
                event["choices"][0]["finish_reason"] = "length"
            if self.running_usage:
                event["usage"] = usage | {"completion_tokens": number}
            if slo_class == "broken" and number == 2:
                event = {"error": {"message": "the replica died"}}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            if "error" in event:
                return response
        if not self.running_usage:
            await response.write(
                b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
            )
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its base URL, on a free port."""
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            await runner.cleanup()


@pytest.fixture
def an_endpoint() -> type[FakeEndpoint]:
    return FakeEndpoint
