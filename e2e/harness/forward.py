"""A way to one certain pod, past the Service: `kubectl port-forward`."""

import contextlib
import re
import subprocess
from collections.abc import Iterator

from e2e.harness.kubectl import Kubectl

START = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ")


@contextlib.contextmanager
def forward(kubectl: Kubectl, pod: str, port: int) -> Iterator[str]:
    """Base URL that ends at `port` of `pod` while the block runs. AssertionError without one."""
    command = [kubectl.program, "--namespace", kubectl.namespace, "port-forward"]
    process = subprocess.Popen(
        [*command, f"pod/{pod}", f":{port}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # it prints one line, or why it can't and ends
        started = START.match(line)
        assert started, f"kubectl port-forward pod/{pod} {port}: {line}"
        yield f"http://127.0.0.1:{started[1]}"
    finally:
        process.kill()
        process.communicate()
