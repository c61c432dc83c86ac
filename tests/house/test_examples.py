"""The examples are right, and explained."""

import re
from pathlib import Path

import pytest
import yaml

from sloserve.http.config import load_manifest
from sloserve.local.state import State
from sloserve.slo import parse_service, service_to_dict

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MANIFESTS = [p for p in sorted(EXAMPLES.glob("*.yaml")) if p.name != "keys.yaml"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_an_example_is_a_service(path: Path) -> None:
    spec = load_manifest(path)
    assert parse_service(service_to_dict(spec)) == spec


def test_every_example_is_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text()
    assert {p.name for p in EXAMPLES.glob("*.y*ml")} == set(
        re.findall(r"^\| \[(.+?)\]", table, re.M)
    )


def test_the_example_for_prometheus_reads_what_make_up_writes() -> None:
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    state = State(Path(".sloserve") / load_manifest(EXAMPLES / "sloservice.yaml").name)
    (scrape,) = config["scrape_configs"]
    assert config["rule_files"] == [f"../{state.rules_path}"]
    assert scrape["file_sd_configs"][0]["files"] == [f"../{state.targets_path}"]


def test_the_default_example_has_three_classes_and_two_replicas() -> None:
    spec = load_manifest(EXAMPLES / "sloservice.yaml")
    assert [c.name for c in spec.classes] == ["chat", "code", "reason"]
    assert spec.replicas == 2
    assert spec.model.source == "builtin://tiny"


def test_keys_name_classes_of_the_default_example() -> None:
    keys = yaml.safe_load((EXAMPLES / "keys.yaml").read_text())["keys"]
    classes = {c.name for c in load_manifest(EXAMPLES / "sloservice.yaml").classes}
    assert all(set(key["classes"]) <= classes for key in keys)


def test_every_field_of_a_manifest_is_explained() -> None:
    text = (EXAMPLES / "README.md").read_text()
    resolved = service_to_dict(load_manifest(EXAMPLES / "sloservice.yaml"))
    spec = resolved["spec"]
    assert isinstance(spec, dict)
    fields = [*spec, *spec["model"], *spec["engine"], *spec["sloClasses"][0], *spec["gateway"]]
    assert [f for f in fields if not re.search(rf"\b{f}\b", text)] == []
