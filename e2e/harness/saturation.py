"""Replicas kept busy with long work that comes from nowhere a gateway could see."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from e2e.harness.figures import total
from e2e.harness.service import Service
from e2e.harness.waiting import until

BULK: Mapping[str, object] = {
    "name": "bulk",
    "ttft": {"target": "10m"},
    "tpot": "10s",
    "objectivePercent": 90,
}
"""A promise so loose that long work always has it."""
TOKENS = 30_000

# Runs in the replica's own container, until its standard input ends.
ASK = """
import json, os, sys, threading, urllib.request
model, count, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
body = {"model": model, "prompt": [100] * 16, "max_tokens": tokens, "ignore_eos": True}
headers = {"content-type": "application/json", "x-slo-class": "bulk"}
def ask():
    url = "http://127.0.0.1:8000/v1/completions"
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)).read()
for _ in range(count):
    threading.Thread(target=ask, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def saturated(service: Service, *pods: str, num_requests: int) -> Iterator[None]:
    """
    So many requests of the class `bulk` run in each of these replicas while the block does.

    With `engine.maxRunning` equal to `num_requests` there is no room beside them.
    """
    with ExitStack() as stack:
        for pod in pods:
            stack.enter_context(_asking(service, pod, num_requests))

        def busy() -> bool:
            reports = service.replica_reports()
            running = [total(reports[pod], "sloserve_running_requests") for pod in pods]
            return all(count >= num_requests for count in running)

        until(busy, f"{num_requests} long requests run in {', '.join(pods)}", timeout_s=30)
        yield


@contextmanager
def _asking(service: Service, pod: str, num_requests: int) -> Iterator[None]:
    kubectl = service.kubectl
    words = ["exec", "-i", pod, "--container", "replica", "--", "python", "-c", ASK]
    words += [service.name, str(num_requests), str(TOKENS)]
    process = subprocess.Popen(
        [kubectl.program, "--namespace", kubectl.namespace, *words],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=30)
