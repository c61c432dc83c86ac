"""
Many services without pods on a real API server.

SLOSERVE_SCALE=500 runs it as large as the bars are stated for; `-s` shows the figures.
"""

import asyncio
import contextlib
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator.api import CHILD_KINDS, SERVICE

Running = Any
Start = Callable[..., contextlib.AbstractAsyncContextManager[Running]]
NUM_SERVICES = int(os.environ.get("SLOSERVE_SCALE", "20"))
NUM_CHILDREN = 11

pytestmark = pytest.mark.e2e


def test_many_services_converge_and_then_nothing_is_written(
    namespace: str, running: Start, kubectl: Callable[..., str]
) -> None:
    async def story() -> None:
        services = [a_service(namespace, f"s{number}") for number in range(NUM_SERVICES)]
        listed = {"apiVersion": "v1", "kind": "List", "items": services}
        kubectl("apply", "--server-side", "-f", "-", given=json.dumps(listed))
        start_s = time.monotonic()
        async with running() as run:
            await run.until(lambda: converged(run), timeout_s=30 + NUM_SERVICES * 0.5)
            took_s = time.monotonic() - start_s
            writes = len(run.writes)
            print(f"\ncold: {took_s:.1f} s, {writes} writes, {took_s / writes * 1e3:.1f} ms each")
            await run.until(lambda: still(run), timeout_s=120)
        start_s, cpu_s = time.monotonic(), time.process_time()
        async with running() as run:
            await run.until(lambda: still(run), timeout_s=120)
            print(f"warm: {time.monotonic() - start_s:.1f} s with a second of stillness, "
                  f"{time.process_time() - cpu_s:.1f} s CPU")  # fmt: skip
            assert [w for w in run.writes if "leases" not in w] == []
            start_s, cpu_s = time.monotonic(), time.process_time()
            await run.operator.resync()
            await run.until(lambda: still(run, for_s=0.0), timeout_s=120)
            print(f"resync: {time.monotonic() - start_s:.2f} s")
            cpu_s = time.process_time()
            await asyncio.sleep(10)
            share = (time.process_time() - cpu_s) / 10
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"at rest: {share:.1%} of a core, {memory:.0f} MiB at most")
            assert [w for w in run.writes if "leases" not in w] == []

    asyncio.run(story())


def a_service(namespace: str, name: str) -> dict[str, Any]:
    classes = [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}]
    return {
        "apiVersion": "sloserve.io/v1alpha1",
        "kind": "SLOService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": "builtin://sim?profile=h200"},
            "sloClasses": classes,
            "replicas": 0,
            "gateway": {"replicas": 0},
        },
    }


async def converged(run: Running) -> bool:
    """Every child there, every status written."""
    cache = run.operator.cache
    children = sum(len(cache.of_kind(kind)) for kind in CHILD_KINDS)
    ready = [
        s for s in cache.of_kind(SERVICE.kind)
        if any(c["type"] == "Ready" and c["status"] == "True"
               for c in (s.get("status") or {}).get("conditions") or ())
    ]  # fmt: skip
    return children == NUM_SERVICES * NUM_CHILDREN and len(ready) == NUM_SERVICES


async def still(run: Running, *, for_s: float = 1.0) -> bool:
    """Nothing to do, for a while."""
    if not run.operator.queue.idle:
        return False
    await asyncio.sleep(for_s)
    return bool(run.operator.queue.idle)
