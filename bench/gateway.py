"""
The gateway's own cost beside its peers', and two gateways on one replica set.

    python -m bench.gateway [--seconds 4] [--rounds 3] [--litellm VENV] [--realtime] [--json FILE]

Cost: a trivial upstream that speaks the wire and writes canned bytes, the real gateway
(`sloserve gateway`: keys, class, routing by polled reports, annotations counted and stripped,
promises judged, counters), a bare ASGI + aiohttp forwarder that does nothing else, and the load
client, each a process. Gateway and forwarder are measured in turn, `rounds` times, each alone on
core 0 when there are two cores or more; the median is shown. Besides what the clock says, every
figure is shown per second of CPU that the forwarding process used: what one core could do if
nothing else ran on the machine, and the number to trust on a shared one.

LiteLLM's proxy (bench/gateway_litellm.py) comes from a virtual environment of its own:
`pip install 'litellm[proxy]' httptools`. Two gateways: bench/gateway_pair.py. On a machine that has
other work to do, `--realtime` gives all processes of the run the processors first.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from bench import gateway_litellm, gateway_pair
from bench.gateway_load import closed_loop, open_loop
from bench.gateway_processes import (
    KEYS,
    SPEC,
    answers,
    cpu_s,
    process,
    run_bare,
    run_real,
    run_upstream,
)
from bench.ports import free_port

SHORT_EVENTS, LONG_EVENTS = 18, 1000


@dataclass(frozen=True)
class Figures:
    """One forwarder in one round, or the median of several."""

    p50_ms: float  # to the first event at 200 req/s
    p99_ms: float
    requests_per_s: float  # 16 connections, 18-event answers
    requests_per_cpu_s: float
    cpu_us_per_request: float
    events_per_s: float  # 16 connections, 1000-event answers
    events_per_cpu_s: float


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
    """p50 and p99 (ms) to the first event without anything between."""
    times_ms = sorted(1e3 * t for t in await open_loop(port, rate_per_s=200, seconds=seconds))
    return times_ms[len(times_ms) // 2], times_ms[int(len(times_ms) * 0.99)]


def median(rounds: list[Figures]) -> Figures:
    """Figure by figure."""
    rows = [asdict(figures) for figures in rounds]
    return Figures(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})


async def cost(ports: dict[str, int], pids: dict[str, int], args: argparse.Namespace) -> Any:
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
        ("added to first event at 200 req/s, p50 (ms)", "<= 1",
         *(f"{f['p50_ms'] - direct_ms['p50_ms']:.2f}" for f in (bare, real))),
        ("added to first event at 200 req/s, p99 (ms)", "<= 5",
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
    """Run it, print the tables."""
    args = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if args.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # children inherit it
    with TemporaryDirectory() as folder:
        result = {"cost": _cost(Path(folder), cores, args)}
        print(table(result["cost"]))
        if "litellm" in result["cost"]:
            print("\n" + gateway_litellm.table(result["cost"]["litellm"]))
        os.sched_setaffinity(0, set(cores))
        result["pair"] = asyncio.run(gateway_pair.pair(Path(folder), window_s=args.window))
    print("\n" + gateway_pair.table(result["pair"]))
    for what, holds in gateway_pair.verdicts(result["pair"]):
        print(f"{'yes' if holds else 'NO':>4}  {what}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def _cost(folder: Path, cores: list[int], args: argparse.Namespace) -> Any:
    gateway_core = cores[0] if len(cores) > 1 else None
    other_core = cores[1] if len(cores) > 1 else None
    names = ("short", "long", "bare short", "bare long", "sloserve short", "sloserve long")
    ports = {name: free_port() for name in names}
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "keys.yaml").write_text(KEYS)
    pids: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for kind, num_events in (("short", SHORT_EVENTS), ("long", LONG_EVENTS)):
            stack.enter_context(process(run_upstream, ports[kind], num_events, other_core))
            for name, target, *more in (("bare", run_bare), ("sloserve", run_real, str(folder))):
                child = process(target, ports[f"{name} {kind}"], ports[kind], *more, gateway_core)
                pids[f"{name} {kind}"] = stack.enter_context(child)
        if other_core is not None:
            os.sched_setaffinity(0, set(cores[1:]))
        result = uvloop.run(cost(ports, pids, args))
        if args.litellm is None or not (args.litellm / "bin/litellm").exists():
            print("LiteLLM is left out: no virtual environment with it was given (--litellm VENV)")
            return result
        proxy = gateway_litellm.litellm(
            args.litellm, ports["short"], folder=folder, core=gateway_core
        )
        result["litellm"] = uvloop.run(
            gateway_litellm.versus(
                stack.enter_context(proxy),
                gateway_port=ports["sloserve short"],
                gateway_pid=pids["sloserve short"],
                seconds=args.seconds,
                rounds=args.rounds,
            )
        )
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seconds", type=float, default=4.0, help="per measurement of cost")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run at real-time priority (root), out of the way of other work",
    )
    parser.add_argument("--window", type=float, default=15.0, help="seconds of load per window")
    parser.add_argument("--litellm", type=Path, help="virtual environment that holds LiteLLM")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
