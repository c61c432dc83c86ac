"""docs/install.md says what is so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sloserve.slo import parse_service


@pytest.fixture(scope="module")
def guide(root: Path) -> str:
    """The text."""
    return (root / "docs" / "install.md").read_text()


def merged(base: Any, over: Any) -> Any:
    """One mapping laid over another."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: merged(base.get(key), value) for key, value in over.items()}


def test_every_piece_of_a_service_is_one_that_is_accepted(guide: str) -> None:
    pieces = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(pieces) >= 3
    minimal = {
        "apiVersion": "sloserve.io/v1alpha1",
        "kind": "SLOService",
        "metadata": {"name": "small"},
        "spec": {
            "model": {"source": "builtin://tiny"},
            "sloClasses": [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}],
        },
    }
    for piece in pieces:
        parse_service(merged(minimal, yaml.safe_load(piece)))


def test_every_value_that_is_named_exists(guide: str, chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    top = "|".join(schema["properties"])
    named = set(re.findall(rf"(?:--set |`)((?:{top})\.[A-Za-z.]+)", guide))
    assert len(named) >= 15
    for name in named:
        node = schema
        for key in name.rstrip(".").split("."):
            assert key in node.get("properties", {}), name
            node = node["properties"][key]


def test_links_lead_somewhere(guide: str, root: Path) -> None:
    heads = {
        re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.+)$", guide, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", guide):
        if target.startswith("#"):
            assert target[1:] in heads, target
        else:
            assert (root / "docs" / target).exists(), target


def test_ports_are_those_of_the_chart(guide: str, helm: Any) -> None:
    text = helm.text()
    for row in ("| operator | gateways | 9090 |", "`services.prometheusLabels`", "8081 |"):
        assert row in guide
    assert "{port: 9090, protocol: TCP}" in text
    assert "containerPort: 8081" in text
