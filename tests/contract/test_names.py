"""Every metric and label in boards, rules, documents and code is one that the code exports."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.stock import sloth_queries, vllm_queries

from sloserve.http.report import NAMES
from sloserve.metrics import EXPORTED, GATEWAY_EXPORTS, REPLICA_EXPORTS, VLLM

NAME = re.compile(r"\b(?:sloserve_|vllm:|slo:)[a-z0-9_:]+\*?")
LEGEND = re.compile(r"\{\{(\w+)\}\}")
VALUES = re.compile(r"label_values\((.+), (\w+)\)")
PACKAGES = {"sloserve_operator"}
ELSEWHERE = ("metrics", "rules", "model")
"""Folders that declare names, build them (boards and rules are read above), or register kernels."""


def boards(root: Path) -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted((root / "dashboards").glob("*.json"))
    }


def board_problems(reader: Any, board: Any) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            wants = frozenset(LEGEND.findall(target.get("legendFormat") or "")) - {"le"}
            yield from reader.problems(target["expr"], wants=wants)
    for variable in board["templating"]["list"]:
        query = variable.get("query")
        if isinstance(query, dict):
            found = VALUES.fullmatch(query["query"])
            assert found, query
            yield from reader.problems(found[1], wants=frozenset({found[2]}))


def all_problems(root: Path, reader: Any, groups: Any, rule_problems: Any) -> list[str]:
    found = [p for board in boards(root).values() for p in board_problems(reader, board)]
    return [*found, *rule_problems(reader, groups)]


def test_every_query_of_boards_and_rules_reads_what_there_is(
    root: Path, reader: Any, groups: Any, rule_problems: Any
) -> None:
    assert len(boards(root)) == 7
    assert all_problems(root, reader, groups, rule_problems) == []
    assert len(reader.used) > 50


def test_queries_of_boards_made_by_others_read_what_there_is(reader: Any) -> None:
    exprs = [*vllm_queries("assistant"), *sloth_queries("assistant", "chat")]
    assert [problem for expr in exprs for problem in reader.problems(expr)] == []
    assert {metric.name for metric in VLLM} <= {
        name.removesuffix("_bucket") for name in reader.used
    }


def test_a_renamed_metric_is_noticed(
    root: Path, series: Any, groups: Any, make_reader: Any, reader: Any, rule_problems: Any
) -> None:
    all_problems(root, reader, groups, rule_problems)
    for name in sorted(reader.used & series.keys()):
        left = {n: labels for n, labels in series.items() if n != name}
        poorer = make_reader(left, groups)
        assert all_problems(root, poorer, groups, rule_problems), name


def test_a_renamed_label_is_noticed(
    root: Path, series: Any, groups: Any, make_reader: Any, rule_problems: Any
) -> None:
    for label in ("service", "slo_class", "promise", "reason", "decision", "replica", "state"):
        renamed = {n: labels - {label} | {"other"} for n, labels in series.items()}
        assert all_problems(root, make_reader(renamed, groups), groups, rule_problems), label


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("sloserve_nothing", "nobody exports"),
        ('sloserve_kv_blocks{slo_class="x"}', "has no label"),
        ("sum by (slo_class) (sloserve_kv_blocks)", "groups by"),
        ("sum by (state) (sloserve_kv_blocks) / sum(sloserve_running_requests)", "never meets"),
        ("sloserve_kv_blocks * on (service) sloserve_replica_info", "both sides"),
        ("histogram_quantile(0.9, sum(rate(sloserve_step_seconds_bucket[5m])))", "no buckets"),
        ("sum(", "in: sum("),
    ],
)
def test_the_reader_sees_what_would_give_no_data(reader: Any, expr: str, words: str) -> None:
    (problem,) = reader.problems(expr)
    assert words in problem


def test_documents_name_metrics_that_exist(root: Path, reader: Any) -> None:
    known = {*reader.known, *(m.name for m in EXPORTED)}
    unknown = []
    for path in [*root.glob("*.md"), *(root / "docs").glob("*.md"), root / "dashboards/README.md"]:
        for name in NAME.findall(path.read_text()):
            stem = name.rstrip("*")
            exists = name in known or (name.startswith("slo:") and name in reader.known)
            family = name.endswith("*") and any(n.startswith(stem) for n in known)
            if not exists and not family and name not in PACKAGES:
                unknown.append(f"{path.name}: {name}")
    assert unknown == []


def test_code_names_metrics_that_are_declared(root: Path, reader: Any) -> None:
    declared = {metric.name for metric in EXPORTED}
    unknown = []
    for path in [*(root / "server").rglob("*.py"), *(root / "operator").rglob("*.py")]:
        if path.parent.name in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if not isinstance(text, str) or text in declared | PACKAGES:
                continue
            if NAME.fullmatch(text) and not text.endswith("_"):
                unknown.append(f"{path.name}: {text}")
    assert unknown == []


def test_routing_reads_what_replicas_export() -> None:
    assert set(NAMES) <= {metric.name for metric in REPLICA_EXPORTS}


def test_every_metric_is_exported_by_somebody_and_explained(root: Path) -> None:
    told = (root / "docs" / "metrics.md").read_text()
    for metric in EXPORTED:
        assert f"| `{metric.name}` | {metric.kind.value} | {metric.unit} |" in told
    both = {m.name for m in GATEWAY_EXPORTS} & {m.name for m in REPLICA_EXPORTS}
    assert both == {
        "sloserve_slo_target_seconds",
        "sloserve_slo_objective_ratio",
        "sloserve_config_generation",
    }
