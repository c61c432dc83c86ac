"""
Two gateways on one replica set: do they promise more than there is, and what does a death cost?

`sharing` offers the same load to one gateway and, split request by request, to two, in the order
one, two, two, one. `killing` ends one of two with SIGKILL under load; who then finds it closed
goes to the other one, where a balancer would send them.
"""

import asyncio
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from bench.gateway_fleet import NAME, Gateway, fleet

from sloserve.load import Judged, Trace, judge
from sloserve.load.client import run_load
from sloserve.load.endpoint import Endpoint, Prompts
from sloserve.load.mixes import Mix, draw
from sloserve.load.options import read_service
from sloserve.slo import Decision

POINT = 0.01
MIX = Mix(rate=24.0, prompt=150.0, prompt_cv=0.4, output=16.0, output_cv=0.4)
SHARES = {"": {"chat": 0.5, "strict": 0.5}}
ORDER = (1, 2, 2, 1)
DRAIN_S = 20.0
LETTERS = range(97, 123)
"""Ids of tokens that every byte tokenizer has."""
KILL_RATE_PER_S = 16.0


@dataclass
class Kept:
    """What became of one way's requests."""

    eligible: int = 0
    attained: int = 0
    promised: int = 0
    """Admitted (at once or after a wait): these must not be late."""
    late: int = 0
    """Promised, and not kept."""
    declined: int = 0
    failed: int = 0

    def add(self, judged: Judged) -> None:
        """One request more."""
        promised = judged.decision in (Decision.ADMITTED, Decision.DEFERRED)
        self.eligible += judged.eligible
        self.attained += judged.attained
        self.promised += promised
        self.late += promised and not judged.attained
        self.declined += judged.decision is Decision.DECLINED
        self.failed += bool(judged.error) and judged.decision is not Decision.DECLINED

    @property
    def attainment(self) -> float:
        """Share of the eligible that kept all."""
        return self.attained / max(1, self.eligible)

    @property
    def late_share(self) -> float:
        """Share of the promised that were late."""
        return self.late / max(1, self.promised)


async def sharing(
    session: aiohttp.ClientSession, folder: Path, *, window_s: float
) -> dict[str, Any]:
    """Attainment and promises broken, by one gateway and by two."""
    kept = {1: Kept(), 2: Kept()}
    notes: list[str] = []
    async with fleet(session, folder, num_gateways=2) as gateways:
        classes = {c.name: c for c in read_service(folder / "fleet.yaml").classes}
        for number, num_gateways in enumerate(ORDER):
            load = replace(MIX, requests=round(MIX.rate * window_s))
            trace = draw(load, seed=number // 2).classed(SHARES, seed=number // 2)
            runs = await asyncio.gather(
                *(
                    run_load(
                        session,
                        Endpoint(f"{gateway.url}/v1", NAME),
                        part,
                        prompts=Prompts(LETTERS, 0.0, True, seed=10 * number + i),
                        classes=classes,
                        drain_s=DRAIN_S,
                    )
                    for i, (gateway, part) in enumerate(
                        zip(gateways, _split(trace, num_gateways), strict=False)
                    )
                )
            )
            for records, health in runs:
                notes += [health.bottleneck] if health.bottleneck else []
                for record in records:
                    kept[num_gateways].add(judge(record))
    return {
        "one": asdict(kept[1]) | {"attainment": kept[1].attainment},
        "two": asdict(kept[2]) | {"attainment": kept[2].attainment},
        "difference": kept[2].attainment - kept[1].attainment,
        "late_difference": kept[2].late_share - kept[1].late_share,
        "client": notes,
    }


def _split(trace: Trace, num_parts: int) -> list[Trace]:
    """Its requests in turn; every part has the same clock."""
    return [replace(trace, arrivals=trace.arrivals[part::num_parts]) for part in range(num_parts)]


@dataclass
class Deaths:
    """What the clients of two gateways saw; `a` is killed, `b` goes on."""

    served: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    failed: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    open_at_kill: int = 0
    """Requests open at `a` when it was killed."""
    refused_then_served: int = 0
    """Found `a` closed, and went to `b`."""


async def killing(folder: Path, *, seconds: float) -> dict[str, Any]:
    """Half of the requests to each of two gateways, one of which is killed half way."""
    deaths = Deaths()
    open_at: Counter[str] = Counter()
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        fleet(session, folder, num_gateways=2) as gateways,
    ):

        async def ask(turn: int) -> None:
            name = "ab"[turn % 2]
            try:
                await to(name)
            except aiohttp.ClientConnectorError:
                served = await to("b")
                deaths.refused_then_served += served

        async def to(name: str) -> bool:
            open_at[name] += 1
            try:
                served = await _whole_stream(session, gateways["ab".index(name)])
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ClientError, OSError, TimeoutError):
                served = False
            finally:
                open_at[name] -= 1
            (deaths.served if served else deaths.failed)[name] += 1
            return served

        tasks = []
        num_requests = round(KILL_RATE_PER_S * seconds)
        for turn in range(num_requests):
            if turn == num_requests // 2:
                deaths.open_at_kill = open_at["a"]
                gateways[0].process.kill()
                await gateways[0].process.wait()
            tasks.append(asyncio.create_task(ask(turn)))
            await asyncio.sleep(1 / KILL_RATE_PER_S)
        await asyncio.gather(*tasks)
    return asdict(deaths)


async def _whole_stream(session: aiohttp.ClientSession, gateway: Gateway) -> bool:
    """One request of 30 tokens; whether its stream came to its end."""
    body = {"model": NAME, "prompt": "On", "max_tokens": 30, "stream": True}
    async with session.post(f"{gateway.url}/v1/completions", json=body) as response:
        text = await response.read()
        return response.status == 200 and text.endswith(b"data: [DONE]\n\n")


async def pair(folder: Path, *, window_s: float) -> dict[str, Any]:
    """Both experiments."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        shared = await sharing(session, folder, window_s=window_s)
    return {"sharing": shared, "killing": await killing(folder, seconds=8.0)}


def table(result: dict[str, Any]) -> str:
    """For people."""
    shared, killed = result["sharing"], result["killing"]
    one, two = shared["one"], shared["two"]
    lines = [f"{'the same load through':44}{'bar':>10}{'one gateway':>20}{'two':>12}"]
    lines.append(
        f"{'attainment':44}{'1 point':>10}{one['attainment']:>20.1%}{two['attainment']:>12.1%}"
    )
    for name in ("eligible", "promised", "late", "declined", "failed"):
        lines.append(f"{name:54}{one[name]:>20}{two[name]:>12}")
    lines += [f"the client was the bottleneck: {note}" for note in shared["client"]]
    a, b = (f"{killed['served'][name]} served, {killed['failed'][name]} failed" for name in "ab")
    lines.append(f"kill -9 of one: killed {a} of {killed['open_at_kill']} open; other {b}")
    return "\n".join(lines)


def verdicts(result: dict[str, Any]) -> list[tuple[str, bool]]:
    """The bars, and whether they hold."""
    shared, killed = result["sharing"], result["killing"]
    return [
        ("two gateways attain within 1 point of one", abs(shared["difference"]) <= POINT),
        ("two gateways break no more promises (1 point)", shared["late_difference"] <= POINT),
        (
            "kill -9: only open connections fail",
            killed["failed"]["a"] <= killed["open_at_kill"]
            and killed["failed"]["b"] == 0
            and killed["refused_then_served"] > 0,
        ),
    ]
