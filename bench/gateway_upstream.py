"""Around the gateway: an upstream of canned bytes, a forwarder that does nothing else."""

import asyncio
import json
from typing import Any, cast

import aiohttp
from bench.gateway_load import CHAT, SERVICE

from sloserve.http import report as reports
from sloserve.http.exporter import Exporter
from sloserve.http.serve import Listener, bind, serving
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.wire import Frontier, Report

EVENT = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": SERVICE,
        "choices": [
            {"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}
        ],
    },
    separators=(",", ":"),
).encode()


class Upstream(asyncio.Protocol):
    """One connection; understands just what an HTTP/1.1 client with Content-Length sends."""

    def __init__(self, report: Report, num_events: int) -> None:
        exporter = Exporter(REPLICA_EXPORTS)
        reports.export(report, exporter)
        text = exporter.render(reports.NAMES)
        self._metrics = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text)
        self._head = (
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
            "x-slo-decision: admitted\r\nx-sloserve-prompt-tokens: 110\r\n"
            f"x-sloserve-report: {reports.to_header(report)}\r\n\r\n"
        ).encode()
        self._num_events = num_events
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self._buffer = rest
            self._transport.write(self._metrics)
            return
        lowered = head.lower()
        length = int(lowered.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        mark = b": n=1 stage=0\n" if b"x-sloserve-annotate: 1" in lowered else b""
        event = mark + b"data: " + EVENT + b"\n\n"
        chunk = b"%x\r\n%s\r\n" % (len(event), event)
        asyncio.get_running_loop().call_soon(self._next, chunk, self._num_events)
        self._transport.write(self._head)

    def _next(self, chunk: bytes, left: int) -> None:
        """One event per turn of the loop, so that events travel one by one."""
        if left:
            self._transport.write(chunk)
            asyncio.get_running_loop().call_soon(self._next, chunk, left - 1)
        else:
            self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def upstream(port: int, num_events: int) -> None:
    """Answer on `port` until cancelled, `num_events` events to each request."""
    report = Report(
        service=SERVICE,
        replica=f"upstream-{port}",
        state="ready",
        frontier={"chat": Frontier(1, 30000), "strict": Frontier(1, 20000)},
        token_supply_per_s=40000.0,
        free_blocks=9000,
        total_blocks=10000,
        zero_load_fixed_s=0.01,
        zero_load_per_token_s=1e-4,
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(report, num_events), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def bare_forwarder(port: int, upstream_port: int) -> None:
    """The reference: the least that a forwarder in Python can do."""
    url = f"http://127.0.0.1:{upstream_port}{CHAT}"
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body = (await receive())["body"]
            async with session.post(url, data=body) as response:
                headers = [(b"content-type", b"text/event-stream")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while data := await response.content.readany():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async with serving([Listener(app, bind("127.0.0.1", port))]):
            await asyncio.Event().wait()
