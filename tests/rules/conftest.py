"""Services to write rules for, and the real promtool to judge them."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sloserve.local.rules import to_yaml
from sloserve.rules import Group, RuleSettings, rules_file, service_groups
from sloserve.slo import ServiceSpec, parse_service

MakeSpec = Callable[..., ServiceSpec]
Judge = Callable[..., None]


@pytest.fixture(scope="session")
def promtool() -> str:
    """The tool's path; without it the test is skipped."""
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed: put it on PATH, or its path into PROMTOOL")
    return found


@pytest.fixture(scope="session")
def a_service() -> MakeSpec:
    """A service with one class per objective (percent), by name."""

    def make(
        classes: Mapping[str, object] | None = None, *, period: str = "7d", **spec: Any
    ) -> ServiceSpec:
        declared = [
            {
                "name": name,
                "ttft": {"target": "1s"},
                "tpot": "100ms",
                "objectivePercent": f"{percent}",
            }
            for name, percent in (classes or {"chat": 99}).items()
        ]
        return parse_service(
            {
                "apiVersion": "sloserve.io/v1alpha1",
                "kind": "SLOService",
                "metadata": {"name": "assistant"},
                "spec": {
                    "model": {"source": "builtin://tiny"},
                    "sloClasses": declared,
                    "observability": {"period": period},
                    **spec,
                },
            }
        )

    return make


@pytest.fixture
def judge(promtool: str, tmp_path: Path) -> Judge:
    """
    Play series through the rules with promtool and compare.

    `stories`: each a mapping of `series` (selector to promtool notation) and `expect`, a list of
    (minute, expression, {labels: value}).
    """

    def play(groups: Sequence[Group], stories: Sequence[Mapping[str, Any]]) -> None:
        (tmp_path / "rules.yaml").write_text(to_yaml(rules_file(tuple(groups))))
        tests = [
            {
                "name": story["name"],
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values}
                    for series, values in story["series"].items()
                ],
                "promql_expr_test": [
                    {
                        "expr": expr,
                        "eval_time": f"{minute}m",
                        "exp_samples": [
                            {"labels": labels, "value": value} for labels, value in found.items()
                        ],
                    }
                    for minute, expr, found in story["expect"]
                ],
                "alert_rule_test": story.get("alerts", []),
            }
            for story in stories
        ]
        file = tmp_path / "test.yaml"
        whole = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
        file.write_text(yaml.safe_dump(whole))
        done = subprocess.run(
            [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return play


@pytest.fixture
def check(promtool: str, tmp_path: Path) -> Callable[[Sequence[Group]], None]:
    """What `promtool check rules` says of some groups."""

    def run(groups: Sequence[Group]) -> None:
        path = tmp_path / "checked.yaml"
        path.write_text(to_yaml(rules_file(tuple(groups))))
        done = subprocess.run(
            [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def groups_of(a_service: MakeSpec) -> Callable[..., tuple[Group, ...]]:
    """The groups of a service, made from what `a_service` takes."""

    def make(
        classes: Mapping[str, object] | None = None,
        *,
        settings: RuleSettings | None = None,
        **spec: Any,
    ) -> tuple[Group, ...]:
        return service_groups(a_service(classes, **spec), settings)

    return make


@pytest.fixture(scope="session")
def root_examples() -> list[Path]:
    """The manifests that the project shows."""
    folder = Path(__file__).resolve().parents[2] / "examples"
    return [path for path in sorted(folder.glob("*.yaml")) if path.name != "keys.yaml"]
