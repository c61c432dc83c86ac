"""
A Prometheus for the length of a block, and what it answers.

Needs the program: on PATH, or its path in the variable PROMETHEUS.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ports import free_port

MISSING = "prometheus is not installed: put it on PATH, or its path into PROMETHEUS"
START_S = 60.0
GONE = (urllib.error.URLError, ConnectionError, TimeoutError)
"""What an address answers that nobody listens on (any more)."""


class Refused(Exception):
    """Prometheus does not answer that; the message says why."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of an answer: labels, and its numbers as (Unix seconds, value); NaN is left out."""

    labels: dict[str, str]
    points: tuple[tuple[float, float], ...]


def program() -> str | None:
    """Where the program is; None when it is not installed."""
    return os.environ.get("PROMETHEUS") or shutil.which("prometheus")


def until(check: Callable[[], Any], what: Callable[[], str], *, patience_s: float) -> float:
    """
    Seconds until `check` is true. Raises TimeoutError with `what` after `patience_s`.

    A `check` that finds nobody who answers is asked again.
    """
    started_s = time.monotonic()
    while time.monotonic() < started_s + patience_s:
        with contextlib.suppress(*GONE):
            if check():
                return time.monotonic() - started_s
        time.sleep(0.25)
    raise TimeoutError(f"waited {patience_s:g} s in vain: {what()}")


class Prometheus:
    """One that runs at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an API call. Raises Refused, or one of GONE."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            if error.code == 503:  # it starts, or it is overloaded
                raise ConnectionError(f"{self.url} has no time: {said}") from None
            raise Refused(f"{said}: {parameters}") from None

    def instant(self, expr: str) -> list[Series]:
        """What an expression is now."""
        found = self.ask("query", query=expr)["result"]
        return _series((one["metric"], [one["value"]]) for one in found)

    def over(self, expr: str, *, last_s: float, step_s: float) -> list[Series]:
        """What it was in the last seconds."""
        now_s = time.time()
        found = self.ask(
            "query_range", query=expr, start=str(now_s - last_s), end=str(now_s), step=str(step_s)
        )["result"]
        return _series((one["metric"], one["values"]) for one in found)

    def label_values(self, selector: str, label: str) -> list[str]:
        """The values that a label has in some series, as Grafana's `label_values` finds them."""
        found = self.ask(f"label/{label}/values", **{"match[]": selector})
        return [str(value) for value in found]

    def firing(self, alertname: str, **labels: str) -> list[dict[str, Any]]:
        """The alerts of that name that fire, with their annotations."""
        return [
            alert
            for alert in self.ask("alerts")["alerts"]
            if alert["state"] == "firing"
            and alert["labels"]["alertname"] == alertname
            and labels.items() <= alert["labels"].items()
        ]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its `health` and `lastError`."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


def _series(found: Any) -> list[Series]:
    lines = []
    for labels, values in found:
        points = tuple((float(at), float(v)) for at, v in values if not math.isnan(float(v)))
        if points:
            lines.append(Series(dict(labels), points))
    return lines


@contextlib.contextmanager
def running(config: Path, folder: Path) -> Iterator[Prometheus]:
    """
    A Prometheus with this configuration; its data and its log (`prometheus.txt`) go to `folder`.

    Raises FileNotFoundError when the program is missing, TimeoutError when it does not start.
    """
    found = program()
    if found is None:
        raise FileNotFoundError(MISSING)
    log, address = folder / "prometheus.txt", f"127.0.0.1:{free_port()}"
    words = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [found, *words, f"--web.listen-address={address}"],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        prometheus = Prometheus(f"http://{address}")

        def ready() -> Any:
            if process.poll() is not None:
                raise Refused(f"prometheus ended: {log.read_text()[-2000:]}")
            return prometheus.ask("status/buildinfo")

        until(ready, log.read_text, patience_s=START_S)
        yield prometheus
    finally:
        process.terminate()
        process.wait(timeout=60)
