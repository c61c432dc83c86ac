"""
LiteLLM's proxy beside the gateway, one after the other on the same core.

At its best: one worker, uvloop and httptools, no database, no keys, no logging, no callbacks.
"""

import contextlib
import os
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gateway_load import SERVICE, closed_loop
from bench.gateway_processes import answers, cpu_s
from bench.ports import free_port

TIMES = 50
CONFIG = """
model_list:
  - model_name: {service}
    litellm_params:
      {{model: openai/{service}, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
litellm_settings: {{set_verbose: false, turn_off_message_logging: true, telemetry: false}}
general_settings: {{disable_spend_logs: true}}
"""
QUIET = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "NO_DOCS": "True",
}


@dataclass(frozen=True, slots=True)
class Running:
    """LiteLLM's proxy as it runs."""

    version: str
    port: int
    pid: int


@contextlib.contextmanager
def litellm(venv: Path, upstream_port: int, *, folder: Path, core: int | None) -> Iterator[Running]:
    """The proxy of the virtual environment `venv`, starting while the block runs."""
    config = folder / "litellm.yaml"
    config.write_text(CONFIG.format(service=SERVICE, port=upstream_port))
    code = "from importlib.metadata import version; print(version('litellm'))"
    version = subprocess.check_output([str(venv / "bin/python"), "-c", code], text=True).strip()
    port = free_port()
    command = [str(venv / "bin/litellm"), "--config", str(config), "--num_workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (folder / "litellm.log").open("wb") as output:
        env = {**os.environ, **QUIET, "PYTHONPATH": ""}
        child = subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=folder)
        if core is not None:
            os.sched_setaffinity(child.pid, {core})
        try:
            yield Running(version, port, child.pid)
        finally:
            child.terminate()
            child.wait(20)


async def versus(
    proxy: Running, *, gateway_port: int, gateway_pid: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Short streamed answers on 16 connections through both, in turn; medians."""
    await answers(proxy.port)
    both = {"litellm": (proxy.port, proxy.pid), "sloserve": (gateway_port, gateway_pid)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
    for _ in range(rounds):
        for name, (port, pid) in both.items():
            await closed_loop(port, connections=4, seconds=0.5)
            before_s = cpu_s(pid)
            count = await closed_loop(port, connections=16, seconds=seconds)
            found[name].append((count / seconds, count / (cpu_s(pid) - before_s)))
    result: dict[str, Any] = {"version": proxy.version}
    for name, rows in found.items():
        by_clock, by_cpu = (statistics.median(row[i] for row in rows) for i in (0, 1))
        result[name] = {"requests_per_s": by_clock, "requests_per_cpu_s": by_cpu}
    return result


def table(result: dict[str, Any]) -> str:
    """For people."""
    theirs, ours = result["litellm"], result["sloserve"]
    lines = [f"{'':44}{'bar':>10}{'LiteLLM ' + result['version']:>20}{'sloserve':>12}{'ratio':>8}"]
    for what, name in (
        ("requests/s, 16 connections, 18 events", "requests_per_s"),
        ("the same per CPU second", "requests_per_cpu_s"),
    ):
        ratio = ours[name] / theirs[name]
        lines.append(
            f"{what:44}{f'>= {TIMES}x':>10}{theirs[name]:>20,.1f}{ours[name]:>12,.0f}{ratio:>7.0f}x"
        )
    return "\n".join(lines)
