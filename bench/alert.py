"""
A page in real time: it comes while a service is slow, says what binds, and goes when it is over.

    python -m bench.alert [--json FILE]          about 12 minutes; needs prometheus (or PROMETHEUS)

`sloserve up` with two simulated replicas, a user who asks without pause, and a Prometheus with the
rules of the manifest as they are. After a while of health the replicas are stopped for most of
every second, as a bad neighbour would; then they are left alone again.
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
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from sloserve.local.rules import to_yaml
from sloserve.local.state import free_port
from sloserve.rules import rules_file, service_groups
from sloserve.slo import parse_service

HEALTHY_S, PATIENCE_S = 120.0, 600.0
STOPPED_S, RUNNING_S = 0.8, 0.2
PAGE = 'ALERTS{alertname="SloserveFastBurn", alertstate="firing"}'
MANIFEST: dict[str, Any] = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "demo"},
    "spec": {
        "model": {"source": "builtin://sim?profile=h200"},
        "sloClasses": [
            {"name": "chat", "ttft": {"target": "500ms"}, "tpot": "50ms", "objectivePercent": 95}
        ],
        "replicas": 2,
        "drain": {"timeout": "5s"},
    },
}


def get(url: str) -> Any:
    """The JSON at a URL; None while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def until(check: Callable[[], Any], what: str) -> float:
    """Seconds until `check` is true; gives up after a long while."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < PATIENCE_S:
        if check():
            return time.monotonic() - started_s
        time.sleep(1.0)
    raise SystemExit(f"waited in vain: {what}")


@contextlib.contextmanager
def program(words: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the length of a block; what it prints is kept beside its files."""
    with (folder / f"{Path(words[0]).name}.txt").open("wb") as out:
        process = subprocess.Popen(words, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def replicas_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The replica processes that `sloserve up` started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(pid) for pid in children if b"\0replica\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@contextlib.contextmanager
def disturbed(pids: list[int]) -> Iterator[None]:
    """These processes stand still for most of every second."""
    stop = threading.Event()

    def disturb() -> None:
        while not stop.wait(RUNNING_S):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            stop.wait(STOPPED_S)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def asking(url: str) -> Iterator[None]:
    """Somebody asks one question after the other."""
    stop = threading.Event()
    body = {"model": "demo", "prompt": "tell me " * 40, "stream": True, "max_tokens": 16,
            "ignore_eos": True}  # fmt: skip

    def ask() -> None:
        while not stop.wait(0.3):
            request = urllib.request.Request(
                f"{url}/v1/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            gone = (urllib.error.URLError, ConnectionError, TimeoutError)
            with contextlib.suppress(*gone), urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def story(folder: Path, prometheus: str) -> dict[str, object]:
    """The whole of it; when the page came and went, in seconds, and what it said."""
    (folder / "service.yaml").write_text(yaml.safe_dump(MANIFEST))
    port, internal, own = free_port(), free_port(), free_port()
    url, prom = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own}"
    words = ["-f", "service.yaml", "--port", str(port), "--internal-port", str(internal)]
    up = [sys.executable, "-m", "sloserve.cli", "up", *words, "--state", "state", "--plain"]
    with program(up, folder) as service:
        until(lambda: _num_ready(url) == 2, "two ready replicas")
        rules = rules_file(service_groups(parse_service(MANIFEST)))
        (folder / "rules.yaml").write_text(to_yaml(rules))
        targets = [f"127.0.0.1:{internal}"]
        config = {
            "global": {"scrape_interval": "5s", "evaluation_interval": "15s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "sloserve", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        flags = ["--config.file=prometheus.yaml", f"--web.listen-address=127.0.0.1:{own}"]
        with program([prometheus, *flags, "--storage.tsdb.path=data"], folder), asking(url):
            return _play(service, prom)


def _play(service: subprocess.Popen[bytes], prom: str) -> dict[str, object]:
    def pages() -> bool:
        query = urllib.parse.urlencode({"query": PAGE})
        answer = get(f"{prom}/api/v1/query?{query}")
        return bool(answer and answer["data"]["result"])

    healthy_until_s = time.monotonic() + HEALTHY_S
    while time.monotonic() < healthy_until_s:
        if pages():
            raise SystemExit("paged while all was well")
        time.sleep(5.0)
    with disturbed(replicas_of(service)):
        fired_s = until(pages, "the page")
        (alert,) = [
            a
            for a in get(f"{prom}/api/v1/alerts")["data"]["alerts"]
            if a["labels"]["alertname"] == "SloserveFastBurn"
        ]
    cleared_s = until(lambda: not pages(), "the end of the page")
    return {
        "fired_after_s": round(fired_s),
        "cleared_after_s": round(cleared_s),
        "constraint": alert["annotations"]["constraint"],
    }


def _num_ready(url: str) -> int:
    told = get(f"{url}/v1/slo")
    return sum(r["state"] == "ready" for r in told["replicas"]) if told else 0


def main() -> None:
    """Play it and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    prometheus = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if not prometheus:
        raise SystemExit("prometheus is not installed: put it on PATH, or its path into PROMETHEUS")
    with TemporaryDirectory() as folder:
        result = story(Path(folder), prometheus)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
