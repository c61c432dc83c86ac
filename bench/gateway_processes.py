"""The processes of the gateway's benchmark: pinned to a core, CPU time read from outside."""

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvloop
from bench.gateway_load import SECRET, SERVICE, clients
from bench.gateway_upstream import bare_forwarder, upstream

from sloserve.gateway.main import serve_gateway

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


def run_upstream(port: int, num_events: int, core: int | None) -> None:
    """Body of a child: the canned upstream."""
    _run(upstream(port, num_events), core)


def run_bare(port: int, upstream_port: int, core: int | None) -> None:
    """Body of a child: the bare forwarder."""
    _run(bare_forwarder(port, upstream_port), core)


def run_real(port: int, upstream_port: int, folder: str, core: int | None) -> None:
    """Body of a child: `sloserve gateway`."""
    _pin(core)
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
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(OSError, RuntimeError):
                async with clients(port, 1) as (client,):
                    await client.ask()
                    return
            await asyncio.sleep(0.1)


def _run(main: Coroutine[Any, Any, None], core: int | None) -> None:
    _pin(core)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main)


def _pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
