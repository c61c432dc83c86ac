"""Values, their schema and their table are one; what is wrong is refused in words that help."""

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

Obj = dict[str, Any]

FAULTS = [
    ({"replicas": 2}, "additional properties 'replicas' not allowed"),
    ({"operator": {"replica": 2}}, "additional properties 'replica' not allowed"),
    ({"operator": {"replicas": "two"}}, "'/operator/replicas': got string, want integer"),
    ({"operator": {"logLevel": "loud"}}, "one of 'debug', 'info', 'warning', 'error'"),
    ({"images": {"pullPolicy": "Sometimes"}}, "one of 'Always', 'IfNotPresent', 'Never'"),
    ({"images": {"operator": {"digest": "abc"}}}, "does not match pattern"),
    ({"images": {"operator": {"repository": "Upper"}}}, "does not match pattern"),
    ({"images": {"pullSecrets": [{"name": "x"}]}}, "got object, want string"),
    ({"watch": {"namespaces": "team-a"}}, "'/watch/namespaces': got string, want array"),
    ({"watch": {"namespaces": ["Team"]}}, "does not match pattern"),
    ({"services": {"gatewayRequests": {"cpu": "much"}}}, "does not match pattern"),
    ({"services": {"fsGroup": 0}}, "minimum: got 0, want 1"),
    ({"services": {"prometheusLabels": {"a": "b c"}}}, "does not match pattern"),
    ({"metrics": {"serviceMonitor": {"interval": "15"}}}, "does not match pattern"),
    ({"networkPolicy": {"apiServerPorts": []}}, "minItems: got 0, want 1"),
    ({"crds": {"enabled": "yes"}}, "got string, want boolean"),
    ({"operator": {"env": [{"name": "SLOSERVE_LEASE"}]}}, "is set by the chart"),
    ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "choose another name"),
    ({"operator": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "choose another name"),
    (
        {"metrics": {"service": False, "serviceMonitor": {"enabled": True}}},
        "set metrics.service to true",
    ),
    ({"serviceAccount": {"create": False}}, "name the ServiceAccount to use"),
]


@pytest.mark.parametrize(("values", "said"), FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_wrong_values_are_refused_in_words_that_help(helm: Any, values: Obj, said: str) -> None:
    assert said in helm.refusal(values)


def schema_of(chart: Path) -> Obj:
    schema: Obj = json.loads((chart / "values.schema.json").read_text())
    return schema


def leaves(schema: Obj, values: Any, path: str = "") -> Iterator[tuple[str, Obj, Any]]:
    """Every value that a person may set, with its schema and default; free maps are one."""
    for key, node in schema["properties"].items():
        here = f"{path}.{key}".lstrip(".")
        if here in ("global", "operator.resources"):
            yield here, node, values.get(key, {})
        elif "properties" in node:
            yield from leaves(node, values[key], here)
        else:
            yield here, node, values[key]


def test_values_and_schema_have_the_same_keys(chart: Path) -> None:
    schema = schema_of(chart)
    values = yaml.safe_load((chart / "values.yaml").read_text())
    pending = [("", schema, values)]
    while pending:
        path, node, given = pending.pop()
        own = set(node["properties"]) - {"global", "claims"}
        assert own == set(given), path
        assert node["additionalProperties"] is False, path
        pending += [
            (f"{path}.{key}", inner, given[key])
            for key, inner in node["properties"].items()
            if "properties" in inner
        ]


def test_every_value_is_described_and_in_the_table(chart: Path) -> None:
    schema = schema_of(chart)
    values = yaml.safe_load((chart / "values.yaml").read_text())
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", (chart / "README.md").read_text(), re.M))
    told: dict[str, str] = {}
    for name, default in rows.items():
        choices = [c.split(",") for c in re.findall(r"\{(.*?)\}", name)]
        for chosen in product(*choices):
            words = iter(chosen)
            told[re.sub(r"\{.*?\}", lambda _, w=words: next(w), name)] = default  # type: ignore[misc]
    found = {name: (node, default) for name, node, default in leaves(schema, values)}
    del found["global"]
    assert set(told) == set(found)
    for name, (node, default) in found.items():
        assert len(node["description"]) > 5, name
        if name == "operator.resources":
            continue
        shown = told[name].strip("`")
        assert yaml.safe_load(shown) == default, name
