"""
The reports of gateways for `bench.scale`: one process answers for all, told apart by address.

    python -m bench.scale_stub [--services N] [--shared]     prints its port
"""

import argparse
import asyncio
import random
import time
from collections import deque
from typing import Any

from aiohttp import web

RATE_PER_S = 1.0
"""Requests of one gateway."""
MISSED = 0.02
"""Share of them that miss their promise."""
WINDOW_S = 300.0
NUM_BEFORE = 86_400
"""Requests that a gateway had before: a day's, so that the budget of its service is settled."""


def address_of(number: int) -> str:
    """Where a gateway is asked: this machine, under an address of its own."""
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


def number_of(address: str) -> int:
    """The gateway that is asked at an address."""
    high, low = (int(part) for part in address.split(".")[2:])
    return (high - 1) * 250 + low - 1


class Traffic:
    """What one gateway has counted, with the noise of requests that come and miss by chance."""

    def __init__(self, service: str, *, seed: int, now_s: float) -> None:
        self._service = service
        self._chance = random.Random(seed)
        self._last_s = now_s
        self._total, self._attained = NUM_BEFORE, round(NUM_BEFORE * (1 - MISSED))
        self._recent: deque[tuple[float, int, int]] = deque()
        for back in range(20, 0, -1):
            self._count(now_s - back * WINDOW_S / 20, WINDOW_S / 20)

    def report(self, *, now_s: float) -> dict[str, Any]:
        """The report of this moment."""
        self._count(now_s, now_s - self._last_s)
        self._last_s = now_s
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()
        recent = [sum(counts) for counts in list(zip(*self._recent, strict=True))[1:]] or [0, 0]
        since_start = self._total, self._attained
        return a_report(self._service, since_start, (recent[0], recent[1]))

    def _count(self, at_s: float, lasted_s: float) -> None:
        wanted = lasted_s * RATE_PER_S
        arrived = int(wanted) + (self._chance.random() < wanted - int(wanted))
        attained = sum(self._chance.random() >= MISSED for _ in range(arrived))
        self._total += arrived
        self._attained += attained
        self._recent.append((at_s, arrived, attained))


def a_report(service: str, since_start: tuple[int, int], recent: tuple[int, int]) -> dict[str, Any]:
    """A gateway's report with these requests and those of them that kept their promise."""
    per_minute = round(60 * RATE_PER_S)
    demand = {"arrived": per_minute, "promptTokens": 100 * per_minute, "answered": per_minute,
              "outputTokens": 100 * per_minute}  # fmt: skip
    chat = {
        "name": "chat",
        "sinceStart": dict(zip(("eligible", "attained"), since_start, strict=True)),
        "last5m": dict(zip(("eligible", "attained"), recent, strict=True)),
        "lastMinute": demand,
        "pending": 0,
    }
    return {"service": service, "generation": 1, "draining": False, "inflight": 3, "pending": 0,
            "classes": [chat], "replicas": []}  # fmt: skip


async def serve(*, num_services: int, shared: bool) -> None:
    """
    Answer `/report` at every address of this machine until the process ends.

    `shared`: all gateways have one counter, which grows with every report that is asked for, and
    the name of no service, so that an operator enters it in the budget and reads no more of it.
    """
    gateways: dict[str, Traffic] = {}
    num_asked = 0

    async def report(request: web.Request) -> web.Response:
        nonlocal num_asked
        if shared:
            num_asked += 1
            counts = num_asked, num_asked - num_asked // 50
            return web.json_response(a_report("s", counts, counts))
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        now_s = time.monotonic()
        if address not in gateways:
            number = number_of(address)
            service = f"s{number % num_services}"
            gateways[address] = Traffic(service, seed=number, now_s=now_s)
        return web.json_response(gateways[address].report(now_s=now_s))

    app = web.Application()
    app.router.add_get("/report", report)
    runner = web.AppRunner(app, keepalive_timeout=75)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--shared", action="store_true")
    args = parser.parse_args()
    asyncio.run(serve(num_services=args.services, shared=args.shared))
