"""
The gateway's own cost: added latency, requests and events per second.

    python bench/gateway.py [--seconds 5] [--rounds 3] [--json FILE]

Four processes: a trivial upstream that speaks the wire and writes canned bytes, the real gateway
(`sloserve gateway`: keys, class, routing by polled reports, annotations counted and stripped,
promises judged, counters), a bare ASGI + aiohttp forwarder that does nothing else, and this
load client. Gateway and forwarder are measured in turn, `rounds` times, each alone on core 0 when
there are two cores or more; the median is shown. Besides what the clock says, every figure is
shown per second of CPU that the forwarding process used: what one core could do if nothing else
ran on the machine, and the number to trust on a shared one.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import aiohttp
import uvloop

from sloserve.gateway.main import serve_gateway
from sloserve.http import report as reports
from sloserve.http.exporter import Exporter
from sloserve.http.serve import Listener, bind, serving
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.wire import Frontier, Report

SERVICE = "bench"
SECRET = "bench-key"
CHAT = "/v1/chat/completions"
SPEC = f"""
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {{name: {SERVICE}}}
spec:
  model: {{source: "builtin://sim"}}
  sloClasses:
    - {{name: chat, ttft: {{target: 1s}}, tpot: 100ms}}
    - {{name: strict, ttft: {{target: 500ms}}, tpot: 50ms, onInfeasible: Decline}}
"""
KEYS = f"keys: [{{name: bench, sha256: {hashlib.sha256(SECRET.encode()).hexdigest()}}}]"
PROMPT = "Tell me a story about a replica that kept its promises. " * 8
BODY = json.dumps(
    {
        "model": SERVICE,
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "max_tokens": 18,
    }
).encode()
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
SHORT_EVENTS, LONG_EVENTS = 18, 1000


# --- the upstream: an HTTP server of canned bytes -------------------------------------------


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


# --- the reference: the least that a forwarder in Python can do ------------------------------


async def bare_forwarder(port: int, upstream_port: int) -> None:
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


# --- the load ------------------------------------------------------------------------------


REQUEST = (
    f"POST {CHAT} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    f"authorization: Bearer {SECRET}\r\nuser-agent: bench\r\naccept: */*\r\n"
    f"content-length: {len(BODY)}\r\n\r\n"
).encode() + BODY


class Client(asyncio.Protocol):
    """One connection that asks again and again; times the first body byte and the end."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._done: asyncio.Future[None]
        self._tail = b""
        self._first_s: float | None = None
        self._num_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._first_s is None:
            self._first_s = time.perf_counter()
            if not data.startswith(b"HTTP/1.1 200"):
                self._done.set_exception(RuntimeError(data[:300].decode("latin-1")))
                return
        self._num_bytes += len(data)
        self._tail = (self._tail + data)[-5:]
        if self._tail == b"0\r\n\r\n" and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionResetError("connection lost"))

    async def ask(self) -> float:
        """One request; seconds to the first byte."""
        self._done = asyncio.get_running_loop().create_future()
        self._tail, self._first_s = b"", None
        begin_s = time.perf_counter()
        self._transport.write(REQUEST)
        await self._done
        assert self._first_s is not None
        return self._first_s - begin_s

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


@contextlib.asynccontextmanager
async def clients(port: int, count: int) -> AsyncIterator[list[Client]]:
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(count)]
    try:
        yield made
    finally:
        for client in made:
            client.close()


async def closed_loop(port: int, *, connections: int, seconds: float) -> int:
    """Every connection asks again as soon as it is answered; requests answered."""
    end_s = time.perf_counter() + seconds

    async def one(client: Client) -> int:
        count = 0
        while time.perf_counter() < end_s:
            await client.ask()
            count += 1
        return count

    async with clients(port, connections) as made:
        return sum(await asyncio.gather(*(one(client) for client in made)))


async def open_loop(port: int, *, rate_per_s: float, seconds: float) -> list[float]:
    """Requests at a steady rate, whatever the answers do; seconds to the first byte of each."""
    async with clients(port, 32) as made:
        free = asyncio.Queue[Client]()
        for client in made:
            free.put_nowait(client)

        async def one() -> float:
            client = await free.get()
            try:
                return await client.ask()
            finally:
                free.put_nowait(client)

        begin_s = time.perf_counter()
        tasks = []
        for number in range(int(rate_per_s * seconds)):
            await asyncio.sleep(begin_s + number / rate_per_s - time.perf_counter())
            tasks.append(asyncio.create_task(one()))
        return await asyncio.gather(*tasks)


# --- the run -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """One forwarder in one round, or the median of several."""

    p50_ms: float  # to the first byte at 200 req/s
    p99_ms: float
    requests_per_s: float  # 16 connections, 18-event answers
    requests_per_cpu_s: float
    cpu_us_per_request: float
    events_per_s: float  # 16 connections, 1000-event answers
    events_per_cpu_s: float


def run(main: Coroutine[Any, Any, None], core: int | None) -> None:
    """The body of a child process."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main)


def run_upstream(port: int, num_events: int, core: int | None) -> None:
    run(upstream(port, num_events), core)


def run_bare(port: int, upstream_port: int, core: int | None) -> None:
    run(bare_forwarder(port, upstream_port), core)


def run_real(port: int, upstream_port: int, folder: str, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    serve_gateway(
        Path(folder) / "spec.yaml",
        listen=f"127.0.0.1:{port}",
        internal="127.0.0.1:0",
        replicas=f"127.0.0.1:{upstream_port}",
        keys=Path(folder) / "keys.yaml",
    )


@contextlib.contextmanager
def process(target: Callable[..., None], *args: Any) -> Iterator[int]:
    """A child process while the block runs; its id."""
    child = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)
    child.start()
    assert child.pid is not None
    try:
        yield child.pid
    finally:
        child.terminate()
        child.join(10)


def cpu_s(pid: int) -> float:
    """CPU seconds (user and system) that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def answers(port: int) -> None:
    """Wait until it serves."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError, RuntimeError):
                async with clients(port, 1) as (client,):
                    await client.ask()
                    return
            await asyncio.sleep(0.1)


async def measure(pids: tuple[int, int], ports: tuple[int, int], *, seconds: float) -> Figures:
    """One forwarder: `ports` and `pids` of the one with short answers, of the one with long."""
    (short_pid, long_pid), (short, long) = pids, ports
    await closed_loop(short, connections=4, seconds=0.5)  # warm
    times_ms = sorted(1e3 * t for t in await open_loop(short, rate_per_s=200, seconds=seconds))
    before_s = cpu_s(short_pid)
    num_requests = await closed_loop(short, connections=16, seconds=seconds)
    requests_cpu_s = cpu_s(short_pid) - before_s
    await closed_loop(long, connections=4, seconds=0.5)
    before_s = cpu_s(long_pid)
    begin_s = time.perf_counter()
    num_events = LONG_EVENTS * await closed_loop(long, connections=16, seconds=seconds)
    took_s = time.perf_counter() - begin_s
    events_cpu_s = cpu_s(long_pid) - before_s
    return Figures(
        p50_ms=times_ms[len(times_ms) // 2],
        p99_ms=times_ms[int(len(times_ms) * 0.99)],
        requests_per_s=num_requests / seconds,
        requests_per_cpu_s=num_requests / requests_cpu_s,
        cpu_us_per_request=1e6 * requests_cpu_s / num_requests,
        events_per_s=num_events / took_s,
        events_per_cpu_s=num_events / events_cpu_s,
    )


async def direct(port: int, *, seconds: float) -> tuple[float, float]:
    """p50 and p99 (ms) to the first byte without anything between."""
    times_ms = sorted(1e3 * t for t in await open_loop(port, rate_per_s=200, seconds=seconds))
    return times_ms[len(times_ms) // 2], times_ms[int(len(times_ms) * 0.99)]


def median(rounds: list[Figures]) -> Figures:
    """Figure by figure."""
    rows = [asdict(figures) for figures in rounds]
    return Figures(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})


async def bench(ports: dict[str, int], pids: dict[str, int], args: argparse.Namespace) -> Any:
    """All rounds, the forwarders in turn."""
    for port in ports.values():
        await answers(port)
    rounds: dict[str, list[Figures]] = {"bare": [], "sloserve": []}
    straight: list[tuple[float, float]] = []
    for _ in range(args.rounds):
        straight.append(await direct(ports["short"], seconds=args.seconds))
        for name, found in rounds.items():
            some_pids = (pids[f"{name} short"], pids[f"{name} long"])
            some_ports = (ports[f"{name} short"], ports[f"{name} long"])
            found.append(await measure(some_pids, some_ports, seconds=args.seconds))
    p50_ms, p99_ms = (statistics.median(s[i] for s in straight) for i in (0, 1))
    return {
        "direct": {"p50_ms": p50_ms, "p99_ms": p99_ms},
        **{name: asdict(median(found)) for name, found in rounds.items()},
        "rounds": {name: [asdict(f) for f in found] for name, found in rounds.items()},
    }


def table(result: Any) -> str:
    """For people."""
    direct_ms, bare, real = result["direct"], result["bare"], result["sloserve"]
    rows = [
        ("added to first byte at 200 req/s, p50 (ms)", "<= 1",
         *(f"{f['p50_ms'] - direct_ms['p50_ms']:.2f}" for f in (bare, real))),
        ("added to first byte at 200 req/s, p99 (ms)", "<= 5",
         *(f"{f['p99_ms'] - direct_ms['p99_ms']:.2f}" for f in (bare, real))),
        ("requests/s, 16 connections, 18 events", ">= 2,500",
         *(f"{f['requests_per_s']:,.0f}" for f in (bare, real))),
        ("the same per CPU second", ">= 2,500",
         *(f"{f['requests_per_cpu_s']:,.0f}" for f in (bare, real))),
        ("CPU per request (us)", "",
         *(f"{f['cpu_us_per_request']:,.0f}" for f in (bare, real))),
        ("events/s, 16 connections, 1000 events", ">= 50,000",
         *(f"{f['events_per_s']:,.0f}" for f in (bare, real))),
        ("the same per CPU second", ">= 50,000",
         *(f"{f['events_per_cpu_s']:,.0f}" for f in (bare, real))),
    ]  # fmt: skip
    lines = [f"{'':44}{'bar':>10}{'bare ASGI+aiohttp':>20}{'sloserve':>12}"]
    lines += [f"{what:44}{bar:>10}{bare_:>20}{real_:>12}" for what, bar, bare_, real_ in rows]
    direct_line = f"direct: p50 {direct_ms['p50_ms']:.2f} ms, p99 {direct_ms['p99_ms']:.2f} ms"
    return "\n".join([*lines, direct_line])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    gateway_core = cores[0] if len(cores) > 1 else None
    other_core = cores[1] if len(cores) > 1 else None
    ports: dict[str, int] = {}
    for name in ("short", "long", "bare short", "bare long", "sloserve short", "sloserve long"):
        with bind("127.0.0.1", 0) as sock:
            ports[name] = sock.getsockname()[1]
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        (Path(folder) / "spec.yaml").write_text(SPEC)
        (Path(folder) / "keys.yaml").write_text(KEYS)
        pids: dict[str, int] = {}
        for kind, num_events in (("short", SHORT_EVENTS), ("long", LONG_EVENTS)):
            stack.enter_context(process(run_upstream, ports[kind], num_events, other_core))
            for name, target, *more in (("bare", run_bare), ("sloserve", run_real, folder)):
                child = process(target, ports[f"{name} {kind}"], ports[kind], *more, gateway_core)
                pids[f"{name} {kind}"] = stack.enter_context(child)
        if other_core is not None:
            os.sched_setaffinity(0, set(cores[1:]))
        result = uvloop.run(bench(ports, pids, args))
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
