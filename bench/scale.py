"""
The operator with many services on a real API server; no pod runs.

    KUBECONFIG=... python -m bench.scale [--services 500] [--gateways 1000] [--shared]

Services have all their real children at `replicas: 0` and `gateway.replicas: 0`. Every part has an
operator in a process of its own, as a pod has one: processor time and memory are that process's;
kubectl and the stub of a gateway are others. Gateways are Pod objects that no scheduler takes, each
with an address of its own at which the stub answers. They are asked as those of services that have
replicas are, every 15 s. `--shared` is the harder setting that this measured before: the counters
of all gateways are one, and gateways are asked every 5 s, as those of services at zero replicas.
Everything is in a namespace of its own, which is deleted at the end; the CRD stays.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.scale_stub import address_of

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, LEASE, POD, SERVICE, Obj
from sloserve_operator.kube import Kube
from sloserve_operator.lease import Lease
from sloserve_operator.operator import Operator, watch
from sloserve_operator.settings import OperatorSettings

Row = tuple[str, ...]
"""What was measured, its bar, the figure."""

CRD = Path(__file__).parents[1] / "crds" / "sloservices.sloserve.io.yaml"
CRD_NAME = "crd/sloservices.sloserve.io"
CHUNK = 100
REST_S = 60.0
POLL_S = 15.0
POLLED_S = 60.0
SETTLE_S = 60.0
"""Until what the first reports said is written."""
STANDBY_S = 30.0
"""Until the first process has looked at everything, and the second at its Lease."""


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--gateways", type=int, default=1000)
    parser.add_argument("--shared", action="store_true", help="one counter, asked every 5 s")
    parser.add_argument("--parts", default="cold,warm,polled,lease", help="of the run")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--namespace", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        json.dump(asyncio.run(run_part(args)), sys.stdout)
        return
    if not os.environ.get("KUBECONFIG"):
        raise SystemExit("bench.scale needs a cluster with nothing to lose: set KUBECONFIG")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    kubectl("wait", "--for=jsonpath={.status.acceptedNames.kind}=SLOService", CRD_NAME)
    namespace = f"scale-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", namespace)
    rows: list[Row] = []
    try:
        for start in range(0, args.services, CHUNK):
            some = range(start, min(start + CHUNK, args.services))
            apply(a_service(namespace, f"s{number}") for number in some)
        for part in args.parts.split(","):
            rows += in_own_process(part, namespace, args)
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")
        print("\n| what | bar | measured |\n| --- | --- | --- |")
        for row in rows:
            print("| " + " | ".join(row) + " |")


def in_own_process(part: str, namespace: str, args: argparse.Namespace) -> list[Row]:
    """The rows of one part."""
    command = [sys.executable, "-m", "bench.scale", "--part", part, "--namespace", namespace]
    command += ["--services", str(args.services), "--gateways", str(args.gateways)]
    command += ["--shared"] if args.shared else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [tuple(row) for row in json.loads(done.stdout)]


async def run_part(args: argparse.Namespace) -> list[Row]:
    """The rows of this process's part, and the most memory it took."""
    rows: list[Row] = []
    if args.part == "cold":
        await cold(rows, args.namespace, args.services)
    elif args.part == "warm":
        await warm(rows, args.namespace)
    elif args.part == "polled":
        rows.append(await polled(args.namespace, args.services, args.gateways, args.shared))
    else:
        await hand_over(rows, args.namespace)
        return rows
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append((f"memory at most, {args.part}", "<= 300 MiB", f"{memory:.0f} MiB"))
    return rows


async def cold(rows: list[Row], namespace: str, num_services: int) -> None:
    """Nothing is in place."""
    begun_s = time.monotonic()
    async with operating(namespace) as run:
        await run.until(run.converged, timeout_s=60 + num_services)
        cpu_s, (child_s, child_writes) = time.process_time(), run.last_child
        for what, end_s, writes in (
            ("cold start until every service is Ready", time.monotonic(), run.num_writes),
            ("cold start until every child is written", child_s, child_writes),
        ):
            each_ms = (end_s - begun_s) / writes * 1e3
            took = f"{end_s - begun_s:.1f} s, {writes} writes, {each_ms:.1f} ms each"
            rows.append((what, "<= 20 ms x writes", took))
        text = f"{cpu_s:.1f} s, {cpu_s / run.num_writes * 1e3:.1f} ms per write"
        rows.append(("the operator's processor time in it", "", text))
        await run.until_still()


async def warm(rows: list[Row], namespace: str) -> None:
    """Everything is in place: start, decide again, list again, rest."""
    begun_s = time.monotonic()
    async with operating(namespace) as run:
        await run.until(run.converged, timeout_s=60)
        await run.until_still()
        took_s = time.monotonic() - begun_s - run.still_s
        rows.append(("warm start", "<= 8 s, 0 writes", f"{took_s:.1f} s, {run.num_writes} writes"))

        run.asked.clear()
        run.lease_writes = 0
        begun_s = time.monotonic()
        for key in run.operator.cache.known():
            run.operator.queue.add(key)
        await run.until_still()
        took_s = time.monotonic() - begun_s - run.still_s
        asked = sum(run.asked.values()) - run.lease_writes
        rows.append(("decide everything again", "<= 2 s, 0 requests", f"{took_s:.2f} s, {asked}"))
        begun_s = time.monotonic()
        await run.operator.resync()
        await run.until_still()
        took_s, lists = time.monotonic() - begun_s - run.still_s, run.asked["GET"]
        rows.append(
            (
                "with lists of everything",
                "",
                f"{took_s:.2f} s, {lists} lists, {run.num_writes} writes",
            )
        )

        run.asked.clear()
        run.lease_writes = run.num_writes = 0
        begun_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(REST_S)
        minutes = (time.monotonic() - begun_s) / 60
        share = (time.process_time() - cpu_s) / (minutes * 60)
        rows.append(
            (
                "at rest",
                "<= 12 Lease writes/min, <= 20 reads/min, <= 1 % of a core",
                f"{run.lease_writes / minutes:.0f}, {run.asked['GET'] / minutes:.0f}, "
                f"{share:.1%}; {run.num_writes} other writes",
            )
        )


async def polled(namespace: str, num_services: int, num_gateways: int, shared: bool) -> Row:
    """Processor time of asking gateways whose counters move."""
    for start in range(0, num_gateways, CHUNK):
        some = range(start, min(start + CHUNK, num_gateways))
        pods = [a_gateway(namespace, f"s{n % num_services}", n) for n in some]
        apply(pods)
        for pod in pods:
            address = address_of(int(pod["metadata"]["name"].rpartition("-")[2]))
            pod["status"] = {
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }  # fmt: skip
        apply(pods, "--subresource=status")
    command = [sys.executable, "-m", "bench.scale_stub", "--services", str(num_services)]
    command += ["--shared"] if shared else []
    stub = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert stub.stdout is not None
        port = int(stub.stdout.readline())
        async with operating(namespace, poll_s=POLL_S, port=port) as run:
            if not shared:
                run.operator.poller._asleep = lambda key: False
            await run.until(run.all_told, timeout_s=120)
            await asyncio.sleep(SETTLE_S)
            cpu_s, before, begun_s = time.process_time(), run.num_writes, time.monotonic()
            await asyncio.sleep(POLLED_S)
            lasted_s = time.monotonic() - begun_s
            share = (time.process_time() - cpu_s) / lasted_s
            writes = (run.num_writes - before) / lasted_s
            told = len(run.operator.poller._told)
    finally:
        stub.terminate()
        stub.wait()
    how = "every 5 s, one counter for all" if shared else f"every {POLL_S:.0f} s"
    return (f"polling {told} gateways {how}", "<= 10 % of a core",
            f"{share:.1%}, {writes:.1f} writes/s")  # fmt: skip


async def hand_over(rows: list[Row], namespace: str) -> None:
    """Seconds until another process holds the Lease, for both ways to end."""
    kube = await Kube.connect(num_connections=2)
    for sign, bar in ((signal.SIGTERM, "about 1 s"), (signal.SIGKILL, "< 20 s")):
        took_s = await time_hand_over(kube, namespace, sign)
        rows.append((f"Lease hand-over on {sign.name}", bar, f"{took_s:.1f} s"))
        kubectl("-n", namespace, "delete", "leases", "--all")
    await kube.close()


async def time_hand_over(kube: Kube, namespace: str, sign: signal.Signals) -> float:
    """Two processes; the first gets the signal when the second stands by."""
    command = [sys.executable, "-m", "sloserve_operator.cli", "--listen", "127.0.0.1:0"]
    command += ["--namespace", namespace, "--watch-namespace", namespace, "--identity"]
    processes = []
    try:
        for identity in ("first", "second"):
            processes.append(subprocess.Popen([*command, identity], stderr=subprocess.DEVNULL))
            if identity == "first":
                await until(lambda: holds(kube, namespace, "first"), timeout_s=60)
        await asyncio.sleep(STANDBY_S)
        begun_s = time.monotonic()
        processes[0].send_signal(sign)
        await until(lambda: holds(kube, namespace, "second"), timeout_s=60)
        return time.monotonic() - begun_s
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def holds(kube: Kube, namespace: str, identity: str) -> bool:
    """Whether that process holds the Lease."""
    found = await kube.get(LEASE, namespace, OperatorSettings().lease)
    return str(((found or {}).get("spec") or {}).get("holderIdentity")).startswith(identity)


class Running:
    """An operator in this process, and what it asks of the API server."""

    still_s = 1.0

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.asked: Counter[str] = Counter()
        self.num_writes = self.lease_writes = 0
        self.last_child = 0.0, 0
        """When, and the how manieth write."""

    def count(self, method: str, path: str) -> None:
        """One request."""
        self.asked[method] += 1
        if "/leases" in path:
            self.lease_writes += method != "GET"
        elif method != "GET":
            self.num_writes += 1
            if method == "PATCH" and "/sloservices/" not in path:
                self.last_child = time.monotonic(), self.num_writes

    async def converged(self) -> bool:
        """Every child there, every service Ready."""
        cache = self.operator.cache
        services = cache.of_kind(SERVICE.kind)
        least = sum(not kind.optional for kind in CHILD_KINDS.values())
        children = sum(len(cache.of_kind(kind)) for kind in CHILD_KINDS)
        return bool(services) and children >= least * len(services) and all(map(is_ready, services))

    async def all_told(self) -> bool:
        """Every gateway has reported."""
        told = self.operator.poller._told
        pods = self.operator.cache.of_kind(POD.kind)
        return len(told) == len(pods) > 0 and all(one.report is not None for one in told.values())

    async def until(self, true: Callable[[], Awaitable[bool]], *, timeout_s: float) -> None:
        """Wait for it; asking costs this process some of the time that it measures."""
        await until(true, timeout_s=timeout_s, every_s=0.25)

    async def until_still(self) -> None:
        """Wait until there is nothing to do, for a while: a look may be put off for a moment."""

        async def still() -> bool:
            if not self.operator.queue.idle:
                return False
            await asyncio.sleep(self.still_s)
            return bool(self.operator.queue.idle)

        await until(still, timeout_s=300)


@contextlib.asynccontextmanager
async def operating(
    namespace: str, *, poll_s: float = 10.0, port: int | None = None
) -> AsyncIterator[Running]:
    """An operator for this namespace while the block runs."""
    settings = OperatorSettings(namespace=namespace, watched=(namespace,), poll_s=poll_s)
    kube = await Kube.connect(num_connections=12)
    lease = Lease(kube, namespace=namespace, name=settings.lease, identity=uuid.uuid4().hex)
    operator = Operator(kube, lease=lease, settings=settings, end=lambda code: None)
    run = Running(operator)
    if port is not None:
        operator.poller._port = port
    plain = kube._ask

    async def counted(method: str, path: str, **more: Any) -> Obj:
        run.count(method, path)
        return await plain(method, path, **more)

    kube._ask = counted  # type: ignore[method-assign]
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(watch(operator, stop=stop, ready=ready))
    try:
        await asyncio.wait_for(ready.wait(), 120)
        yield run
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)
        await kube.close()


async def until(
    true: Callable[[], Awaitable[bool]], *, timeout_s: float, every_s: float = 0.05
) -> None:
    """Ask until it is true."""
    async with asyncio.timeout(timeout_s):
        while not await true():
            await asyncio.sleep(every_s)


def is_ready(service: Obj) -> bool:
    """Whether its status says so."""
    conditions = (service.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def a_service(namespace: str, name: str) -> Obj:
    """One that runs no pod."""
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


def a_gateway(namespace: str, service: str, number: int) -> Obj:
    """The Pod object of a gateway that no scheduler takes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{service}-gateway-{number}",
            "namespace": namespace,
            "labels": names.labels(service, names.GATEWAY),
        },
        "spec": {
            "schedulerName": "none",
            "containers": [{"name": "gateway", "image": "localhost/none"}],
        },
    }


def apply(objects: Any, *words: str) -> None:
    """Apply objects at once."""
    listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    kubectl(
        "apply", "--server-side", "--force-conflicts", *words, "-f", "-", text=json.dumps(listed)
    )


def kubectl(*words: str, text: str | None = None) -> str:
    """Run kubectl; its output."""
    done = subprocess.run(
        ["kubectl", *words], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
