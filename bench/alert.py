"""
A page in real time: it comes while a service is slow, says what binds, and goes when it is over.

    python -m bench.alert [--json FILE]       a quarter of an hour; needs prometheus (or PROMETHEUS)
    python -m bench.alert --step-model        an hour: until the alert on the step model went, too

What `make up` runs (or another manifest), loaded by `sloserve bench`, watched by a Prometheus with
`examples/prometheus.yml`: the rules are those of the manifest, with their real windows. After a
while of health all replicas are stopped for most of every second, as a bad neighbour or a CPU limit
would; when the alert fires they are left alone again. Linux: it looks for the replicas in /proc.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.boards import questions
from bench.ports import free_port
from bench.prometheus import MISSING, Prometheus, program, running, until
from bench.stock import vllm_queries

from sloserve.http.config import load_manifest
from sloserve.rules.burn import FAST_BURN
from sloserve.rules.serving import STEP_MODEL_OFF

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Duty:
    """How long a disturbed replica runs, and how long it then stands still, again and again."""

    running_s: float
    stopped_s: float


HARSH = Duty(0.04, 0.92)
"""Breaks promises a hundred times as slow as the machine. Too little even to answer a scrape."""
MILD = Duty(0.1, 0.4)
"""One step in twenty takes half a second; a replica still tells how it fares."""
READY_S, HEALTHY_S, PATIENCE_S = 300.0, 180.0, 3600.0
LOAD = "synthetic:requests=1000,prompt=120,output=40,output_cv=0.3"


@dataclass(frozen=True, slots=True)
class Service:
    """A `sloserve up` that runs."""

    name: str
    url: str
    state: Path
    process: subprocess.Popen[bytes]

    def num_ready(self) -> int:
        """Replicas that answer. Raises one of GONE while nobody does."""
        with urllib.request.urlopen(f"{self.url}/v1/slo", timeout=10) as answer:
            return sum(r["state"] == "ready" for r in json.load(answer)["replicas"])

    def replica_pids(self) -> list[int]:
        """The processes of the replicas."""
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if {"replica", str(self.state / "service.yaml")} <= _words(path)
        ]


@dataclass(frozen=True, slots=True)
class Played:
    """What became of one alert; seconds from the beginning and the end of the slowness."""

    alertname: str
    fired_after_s: float
    cleared_after_s: float
    constraint: str
    description: str


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_bytes().decode(errors="replace").split("\0"))
    except OSError:  # it has ended
        return set()


@contextlib.contextmanager
def serving(
    manifest: Path, state: Path, log: Path, *, num_replicas: int, words: Sequence[str] = ()
) -> Iterator[Service]:
    """`sloserve up`, ready. Raises TimeoutError, or RuntimeError with what it said when it ends."""
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sloserve.cli", "up", "-f", str(manifest), "--plain",
             "--port", str(port), "--state", str(state), *words],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    service = Service(load_manifest(manifest).name, f"http://127.0.0.1:{port}", state, process)

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"sloserve up ended: {log.read_text()}")
        return service.num_ready() == num_replicas

    try:
        until(ready, log.read_text, patience_s=READY_S)
        yield service
    finally:
        process.terminate()
        process.wait(timeout=120)


@contextlib.contextmanager
def loaded(
    service: Service, log: Path, *, rate: float, words: Sequence[str] = ()
) -> Iterator[None]:
    """`sloserve bench` at so many requests per second, for as long as the block takes."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sloserve.cli", "bench", "--plain", "--url", f"{service.url}/v1",
             "--trace", LOAD, "--rate", str(rate), "--duration", str(2 * PATIENCE_S), *words],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"sloserve bench ended: {log.read_text()}")
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextlib.contextmanager
def disturbed(pids: Sequence[int], duty: Duty) -> Iterator[None]:
    """These processes stand still for most of every second."""
    over = threading.Event()

    def send(signum: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def disturb() -> None:
        while not over.wait(duty.running_s):
            send(signal.SIGSTOP)
            over.wait(duty.stopped_s)
            send(signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def play(
    service: Service,
    prometheus: Prometheus,
    alertname: str,
    *,
    duty: Duty,
    tell: Callable[[str], None],
    patience_s: float = PATIENCE_S,
    at_worst: Callable[[], None] = lambda: None,
    **labels: str,
) -> Played:
    """
    Slow the replicas until the alert fires, then leave them alone until it has cleared.

    `labels` choose among alerts of the same name; `at_worst` is called while it fires. Raises
    TimeoutError.
    """
    with disturbed(service.replica_pids(), duty):
        tell(f"the replicas run for {duty.running_s} s, stand still for {duty.stopped_s} s, ...")
        fired_after_s = until(
            lambda: prometheus.firing(alertname, **labels),
            lambda: f"{alertname} to fire",
            patience_s=patience_s,
        )
        told = prometheus.firing(alertname, **labels)[0]["annotations"]
        tell(f"{alertname} fires after {fired_after_s:.0f} s; what binds: {told['constraint']}")
        tell(told["description"])
        at_worst()
    tell("the replicas are left alone again")
    cleared_after_s = until(
        lambda: not prometheus.firing(alertname, **labels),
        lambda: f"{alertname} to clear",
        patience_s=patience_s,
    )
    tell(f"{alertname} has cleared after {cleared_after_s:.0f} s")
    return Played(
        alertname, fired_after_s, cleared_after_s, told["constraint"], told["description"]
    )


def empty(prometheus: Prometheus, model: str) -> set[str]:
    """Panels (but the operator's) and stock queries that have no data now."""
    without = {
        f"{question.board} / {question.panel}"
        for question in questions()
        if question.board != "operator" and not question.answer(prometheus, {})
    }
    return without | {expr for expr in vllm_queries(model) if not prometheus.instant(expr)}


def story(folder: Path, manifest: Path, *, rate: float, step_model: bool) -> dict[str, Any]:
    """The whole of it; what to keep of it as JSON."""
    started_s = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - started_s:6.0f} s  {line}", flush=True)

    spec = load_manifest(manifest)
    config = (ROOT / "examples" / "prometheus.yml").read_text()
    here = folder / "prometheus.yml"
    here.write_text(config.replace("../.sloserve/assistant", str(folder / "state")))
    log = folder / "up.txt"
    with (
        serving(manifest, folder / "state", log, num_replicas=max(1, spec.replicas)) as service,
        loaded(service, folder / "bench.txt", rate=rate),
        running(here, folder) as prometheus,
    ):
        tell(f"{service.name} is ready at {service.url}, with {rate:g} requests/s")
        time.sleep(HEALTHY_S)
        if prometheus.firing(FAST_BURN) or prometheus.firing(STEP_MODEL_OFF):
            raise RuntimeError(
                "alerts fire though nothing was done to the service: a busy machine?"
            )
        without = empty(prometheus, spec.model.served_name)
        tell(f"no alert in {HEALTHY_S:.0f} s of health")
        played = [
            play(
                service,
                prometheus,
                FAST_BURN,
                duty=HARSH,
                tell=tell,
                at_worst=lambda: without.intersection_update(
                    empty(prometheus, spec.model.served_name)
                ),
            )
        ]
        tell(f"queries without data, in health as well as when it fired: {sorted(without) or 0}")
        if step_model:
            played.append(play(service, prometheus, STEP_MODEL_OFF, duty=MILD, tell=tell))
    alerts = [asdict(one) for one in played]
    return {"healthy_s": HEALTHY_S, "rate": rate, "alerts": alerts, "empty": sorted(without)}


def main() -> None:
    """Play it and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT / "examples" / "sloservice.yaml"
    parser.add_argument("-f", "--file", type=Path, default=default, help="SLOService manifest")
    parser.add_argument("--rate", type=float, default=2.0, help="requests/s (default 2)")
    parser.add_argument("--step-model", action="store_true", help="then play that alert as well")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if program() is None:
        raise SystemExit(MISSING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no process, and none stopped
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            manifest = args.file.absolute()
            result = story(folder, manifest, rate=args.rate, step_model=args.step_model)
        except (RuntimeError, TimeoutError) as error:
            for log in sorted(folder.glob("*.txt")):
                shutil.copy(log, Path.cwd())
            raise SystemExit(f"{error}\n(logs are kept in {Path.cwd()})") from None
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
