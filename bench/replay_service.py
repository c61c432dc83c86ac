"""One replica and one gateway as processes, and what the gateway counted."""

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from bench.ports import free_port

from sloserve.errors import Failed

HOST = "127.0.0.1"
START_S = 180.0
STOP_S = 20.0
COUNTER = re.compile(r"^(sloserve_slo_(?:requests|attained)_total)\{(.*)\} ([0-9.e+]+)$")


@dataclass(frozen=True, slots=True)
class Counted:
    """What the gateway counted of one class: eligible requests, and those that kept all."""

    eligible: int
    attained: int


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers."""

    url: str
    internal_url: str
    replica_url: str
    session: aiohttp.ClientSession

    async def counters(self) -> dict[str, Counted]:
        """The gateway's counters per class, since its start."""
        async with self.session.get(f"{self.internal_url}/metrics") as response:
            return parse_counters(await response.text())

    async def steps(self) -> list[dict[str, Any]]:
        """The replica's latest steps (at most a thousand)."""
        async with self.session.get(f"{self.replica_url}/debug/steps") as response:
            listed: list[dict[str, Any]] = (await response.json())["steps"]
            return listed


def parse_counters(text: str) -> dict[str, Counted]:
    """Eligible and attained per class from Prometheus text."""
    eligible: dict[str, int] = {}
    attained: dict[str, int] = {}
    for line in text.splitlines():
        match = COUNTER.match(line)
        if match is None:
            continue
        name, labels_text, value = match.groups()
        labels = dict(re.findall(r'(\w+)="([^"]*)"', labels_text))
        if name.startswith("sloserve_slo_requests"):
            eligible[labels["slo_class"]] = int(float(value))
        elif labels.get("promise") == "all":
            attained[labels["slo_class"]] = int(float(value))
    return {name: Counted(count, attained.get(name, 0)) for name, count in eligible.items()}


def since(before: Mapping[str, Counted], after: Mapping[str, Counted]) -> dict[str, Counted]:
    """What was counted between two looks."""
    zero = Counted(0, 0)
    return {
        name: Counted(
            count.eligible - before.get(name, zero).eligible,
            count.attained - before.get(name, zero).attained,
        )
        for name, count in after.items()
    }


@contextlib.asynccontextmanager
async def serving(
    manifest: Path,
    *,
    policy: str,
    profile: Path,
    threads: int,
    log: Path,
    module: str = "sloserve.cli",
    more: Sequence[str] = (),
) -> AsyncIterator[Running]:
    """
    The service of `manifest` under `policy`, ready; `module` runs the replica's command, `more`
    flags go to it.
    """
    ports = [free_port() for _ in range(3)]
    replica, gateway, internal = (f"{HOST}:{port}" for port in ports)
    common = ["--config", str(manifest), "--log-level", "warning"]
    own = ["--policy", policy, "--profile", str(profile), "--threads", str(threads)]
    inner = ["--internal", internal, "--replicas", replica]
    programs = (
        [module, "replica", *common, "--listen", replica, *own, *more],
        ["sloserve.cli", "gateway", *common, "--listen", gateway, *inner],
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    children: list[asyncio.subprocess.Process] = []
    with log.open("ab") as output:
        try:
            for words in programs:
                program = [sys.executable, "-m", *words]
                children.append(
                    await asyncio.create_subprocess_exec(*program, stdout=output, stderr=output)
                )
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                for base in (replica, gateway):
                    await _ready(session, f"http://{base}/ready", children, log=log)
                urls = (f"http://{gateway}/v1", f"http://{internal}", f"http://{replica}")
                yield Running(*urls, session)
        finally:
            for child in reversed(children):
                await _stop(child)


async def _ready(
    session: aiohttp.ClientSession,
    url: str,
    children: list[asyncio.subprocess.Process],
    *,
    log: Path,
) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        if any(child.returncode is not None for child in children):
            raise Failed(f"the service ended while starting; see {log}")
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(url) as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.2)
    raise Failed(f"{url} was not ready within {START_S:.0f} s; see {log}")


async def _stop(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(child.wait(), STOP_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
