"""
A replica's report, as Prometheus text and as one response header.

The text is the routing part of `/metrics`: the same numbers that Prometheus scrapes, under the
names of `sloserve.metrics.REPORT`. The header is compact JSON of the same.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

from sloserve.errors import BadInput
from sloserve.http.exporter import Exporter
from sloserve.metrics import REPORT as REPORT_METRICS
from sloserve.wire import REPORT, Frontier, Report

NAMES = (*(metric.name for metric in REPORT_METRICS), "sloserve_config_generation")
STATES = ("loading", "ready", "draining")
PATH = "/metrics?" + urlencode([("name[]", name) for name in NAMES])
"""What a gateway asks a replica for."""

_SAMPLE = re.compile(r'^(\w+)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? (\S+)', re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def export(report: Report, to: Exporter) -> None:
    """Put a report into the exporter's gauges."""
    for name in ("sloserve_frontier_prompt_tokens", "sloserve_earliest_first_token_seconds"):
        to.clear(name)
    to.set("sloserve_replica_info", report.service, report.replica, value=1)
    for state in STATES:
        to.set("sloserve_replica_state", state, value=state == report.state)
    for slo_class, frontier in report.frontier.items():
        to.set("sloserve_frontier_prompt_tokens", slo_class, "min", value=frontier.min_tokens)
        to.set("sloserve_frontier_prompt_tokens", slo_class, "max", value=frontier.max_tokens)
    for slo_class, earliest_s in report.earliest_first_token_s.items():
        to.set("sloserve_earliest_first_token_seconds", slo_class, value=earliest_s)
    to.set("sloserve_tightest_tpot_seconds", value=report.tightest_tpot_s)
    to.set("sloserve_token_supply_per_second", value=report.token_supply_per_s)
    to.set("sloserve_kv_blocks", "free", value=report.free_blocks)
    to.set("sloserve_kv_blocks", "used", value=report.total_blocks - report.free_blocks)
    to.set("sloserve_running_requests", value=report.num_running)
    to.set("sloserve_waiting_requests", value=report.num_waiting)
    to.set("sloserve_waiting_prefill_tokens", value=report.waiting_prefill_tokens)
    to.set("sloserve_zero_load_seconds", "fixed", value=report.zero_load_fixed_s)
    to.set("sloserve_zero_load_seconds", "per_prompt_token", value=report.zero_load_per_token_s)
    to.set("sloserve_config_generation", value=report.config_generation)


def parse(text: str) -> Report:
    """
    The report in Prometheus text. Raises BadInput when it is none.

    Reads the subset that `export` writes, in one pass: it runs ten times a second per replica.
    """
    values: dict[tuple[str, ...], float] = {}
    info: dict[str, str] | None = None
    try:
        for name, labels, value in _SAMPLE.findall(text):
            found = {k: _unescape(v) for k, v in _LABEL.findall(labels)}
            if name == "sloserve_replica_info":
                info = found
            else:  # labels come sorted by name: bound, slo_class
                values[(name, *found.values())] = float(value)
    except ValueError as error:
        raise BadInput(f"not a replica's report: {error}") from None
    if info is None or not {"service", "replica"} <= info.keys():
        raise BadInput("not a replica's report: no sloserve_replica_info in it")
    return _report(info, values)


def _report(info: Mapping[str, str], values: Mapping[tuple[str, ...], float]) -> Report:
    def of(*key: str) -> float:
        return values.get(key, 0.0)

    classes = {
        key[2] for key in values if key[0] == "sloserve_frontier_prompt_tokens" and key[1] == "min"
    }
    bounds = "sloserve_frontier_prompt_tokens"
    free = int(of("sloserve_kv_blocks", "free"))
    return Report(
        service=info["service"],
        replica=info["replica"],
        state=next((s for s in STATES if of("sloserve_replica_state", s) == 1), "loading"),
        frontier={
            c: Frontier(int(of(bounds, "min", c)), int(of(bounds, "max", c))) for c in classes
        },
        earliest_first_token_s={
            key[1]: value
            for key, value in values.items()
            if key[0] == "sloserve_earliest_first_token_seconds"
        },
        tightest_tpot_s=of("sloserve_tightest_tpot_seconds"),
        token_supply_per_s=of("sloserve_token_supply_per_second"),
        free_blocks=free,
        total_blocks=free + int(of("sloserve_kv_blocks", "used")),
        num_running=int(of("sloserve_running_requests")),
        num_waiting=int(of("sloserve_waiting_requests")),
        waiting_prefill_tokens=int(of("sloserve_waiting_prefill_tokens")),
        zero_load_fixed_s=of("sloserve_zero_load_seconds", "fixed"),
        zero_load_per_token_s=of("sloserve_zero_load_seconds", "per_prompt_token"),
        config_generation=int(of("sloserve_config_generation")),
    )


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), text)


def to_header(report: Report) -> str:
    """The report for the `x-sloserve-report` header: compact JSON, ASCII, one line."""
    raw = asdict(report)
    raw["frontier"] = {c: [f.min_tokens, f.max_tokens] for c, f in report.frontier.items()}
    return json.dumps(raw, separators=(",", ":"))


def from_header(text: str) -> Report:
    """The report in an `x-sloserve-report` header. Raises BadInput when it is none."""
    try:
        raw: dict[str, Any] = json.loads(text)
        raw["frontier"] = {c: Frontier(int(a), int(b)) for c, (a, b) in raw["frontier"].items()}
        return Report(**raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"not a report: {error!r} in {text[:200]!r}", field=REPORT) from None
