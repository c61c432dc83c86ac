"""`sloserve-operator` as a process of its own: Lease, signals, exit codes, kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Kubectl = Callable[..., str]
Put = Callable[..., None]
NUM_CHILDREN = 11

pytestmark = pytest.mark.e2e


class Processes:
    """Operators of one namespace, each with its own port."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.all: list[subprocess.Popen[str]] = []

    def start(self) -> "subprocess.Popen[str]":
        words = ["--namespace", self.namespace, "--watch-namespace", self.namespace]
        words += ["--listen", "127.0.0.1:0", "--identity", f"p{len(self.all)}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "sloserve_operator.cli", *words],
            env={**os.environ}, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.all.append(process)
        return process


@pytest.fixture
def processes(namespace: str) -> Iterator[Processes]:
    made = Processes(namespace)
    yield made
    for process in made.all:
        if process.poll() is None:
            process.kill()
        process.wait()


def until(true: Callable[[], bool], *, timeout_s: float = 40.0) -> None:
    """Wait for what is asserted."""
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def holder(kubectl: Kubectl, namespace: str) -> str:
    found = json.loads(kubectl("-n", namespace, "get", "leases", "-o", "json"))["items"]
    return str(found[0]["spec"].get("holderIdentity") or "") if found else ""


def owned(kubectl: Kubectl, namespace: str) -> list[dict[str, Any]]:
    kinds = "configmaps,services,serviceaccounts,deployments,pdb,networkpolicies"
    found = json.loads(kubectl("-n", namespace, "get", kinds, "-o", "json"))["items"]
    return [obj for obj in found if obj["metadata"].get("ownerReferences")]


def test_a_signal_ends_it_with_its_code_and_hands_the_lease_over(
    namespace: str, processes: Processes, kubectl: Kubectl
) -> None:
    first = processes.start()
    until(lambda: holder(kubectl, namespace).startswith("p0-"))
    processes.start()
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    until(lambda: holder(kubectl, namespace).startswith("p1-"))
    processes.all[1].send_signal(signal.SIGINT)
    assert processes.all[1].wait(20) == 130
    assert holder(kubectl, namespace) == ""


def test_a_killed_operator_is_followed_by_another_that_finishes_its_work(
    namespace: str, processes: Processes, kubectl: Kubectl, put: Put
) -> None:
    """Killed at random while services change; every time the next one waits for the Lease."""
    rng = random.Random(int(os.environ.get("SLOSERVE_CHAOS_SEED", "1")))
    for number in range(int(os.environ.get("SLOSERVE_CHAOS", "2"))):
        process = processes.start()
        put(name="a", engine={"maxRunning": 8 + number})
        put(name="b", drain={"timeout": f"{number + 1}m"})
        time.sleep(rng.uniform(0.5, 4.0))
        process.kill()
        process.wait()
        kubectl("-n", namespace, "delete", "lease", "--all")  # no need to wait it out every time
    processes.start()
    put(name="a", replicas=0)
    words = ("wait", "--for=condition=Ready", "--timeout=60s", "slosvc/a", "slosvc/b")
    until(lambda: len(owned(kubectl, namespace)) == 2 * NUM_CHILDREN, timeout_s=60)
    kubectl("-n", namespace, *words)
    names = [(obj["kind"], obj["metadata"]["name"]) for obj in owned(kubectl, namespace)]
    assert len(set(names)) == 2 * NUM_CHILDREN
