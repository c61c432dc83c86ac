"""Simulated replicas and some gateways in front of all of them, as real processes."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from bench.ports import free_port

from sloserve.errors import Failed
from sloserve.perf import Profile, StepModel, save_profile

NUM_REPLICAS = 2
START_S = 60.0
STOP_S = 15.0
NAME = "fleet"
SPEC = f"""
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {{name: {NAME}}}
spec:
  model: {{source: "builtin://sim"}}
  replicas: {NUM_REPLICAS}
  sloClasses:
    - {{name: chat, ttft: {{target: 1s}}, tpot: 120ms}}
    - {{name: strict, ttft: {{target: 400ms}}, tpot: 80ms, onInfeasible: Decline}}
"""
# A step of one token takes 20 ms, a token more 0.4 ms: some 12 requests/s of 150 prompt and 16
# output tokens per replica, few enough for two cores to act them out.
STEP = StepModel(w=0.020, a0=0.0001, c1=0.015, a1=0.0004, b=0.0, d=0.0)


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway process."""

    url: str
    process: asyncio.subprocess.Process


@contextlib.asynccontextmanager
async def fleet(
    session: aiohttp.ClientSession, folder: Path, *, num_gateways: int
) -> AsyncIterator[Sequence[Gateway]]:
    """The gateways, ready, with `NUM_REPLICAS` ready replicas behind each; stopped at the end."""
    spec, profile, log = folder / "fleet.yaml", folder / "profile.json", folder / "fleet.log"
    spec.write_text(SPEC)
    save_profile(Profile("bench", "sim", "none", 0, "2026-01-01", STEP, 0.0, 0.0), profile)
    common = ["--config", str(spec), "--log-level", "warning"]
    replicas = [f"127.0.0.1:{free_port()}" for _ in range(NUM_REPLICAS)]
    children: list[asyncio.subprocess.Process] = []
    with log.open("ab") as output:

        async def start(*words: str) -> asyncio.subprocess.Process:
            command = [sys.executable, "-m", "sloserve.cli", *words, *common]
            child = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
            children.append(child)
            return child

        try:
            for address in replicas:
                own = ["--listen", address, "--name", address, "--profile", str(profile)]
                await start("replica", *own)
            gateways = []
            for _ in range(num_gateways):
                address = f"127.0.0.1:{free_port()}"
                own = ["--listen", address, "--internal", "127.0.0.1:0"]
                child = await start("gateway", *own, "--replicas", ",".join(replicas))
                gateways.append(Gateway(f"http://{address}", child))
            for gateway in gateways:
                await _ready(session, gateway, log=log)
            yield gateways
        finally:
            for child in reversed(children):
                await _stop(child)


async def _ready(session: aiohttp.ClientSession, gateway: Gateway, *, log: Path) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"{gateway.url}/v1/slo") as response:
                seen = (await response.json())["replicas"]
                if sum(replica["state"] == "ready" for replica in seen) == NUM_REPLICAS:
                    return
        await asyncio.sleep(0.1)
    told = log.read_text()[-2000:]
    raise Failed(f"the replicas were not ready within {START_S:.0f} s; their log ends: {told}")


async def _stop(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(child.wait(), STOP_S)
    except TimeoutError:
        child.kill()
        await child.wait()
