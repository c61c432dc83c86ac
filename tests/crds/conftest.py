"""The API server's view of the CRD, worked out here: structural schema, defaults and CEL rules."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cel
import jsonschema_rs
import pytest
import yaml

from sloserve.errors import BadInput
from sloserve.slo import ServiceSpec, parse_service

Node = dict[str, Any]
Way = tuple[str | int, ...]
PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"
KEYWORDS = (
    "type",
    "enum",
    "required",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "maxProperties",
)
METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {name: {} for name in ("name", "namespace", "labels", "annotations")},
    "additionalProperties": False,
}


def load(path: Path) -> Any:
    """A YAML file as kubectl would send it: 2.0 is the number 2."""
    return as_json(yaml.safe_load(path.read_text()))


def as_json(value: Any) -> Any:
    """The value after the way through JSON."""
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_json(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def json_schema(node: Node) -> Node:
    """A structural schema as a strict JSON schema: what is not declared is refused."""
    schema = {key: node[key] for key in KEYWORDS if key in node}
    if node.get(INT_OR_STRING):
        schema["type"] = ["integer", "string"]
    if "items" in node:
        schema["items"] = json_schema(node["items"])
    if "properties" in node:
        schema["properties"] = {k: json_schema(v) for k, v in node["properties"].items()}
    if "additionalProperties" in node:
        schema["additionalProperties"] = json_schema(node["additionalProperties"])
    elif node.get("type") == "object" and not node.get(PRESERVE):
        schema["additionalProperties"] = False
    return schema


def completed(value: Any, node: Node) -> Any:
    """The value with nulls dropped and defaults filled in, as an API server does first."""
    if isinstance(value, list) and "items" in node:
        return [completed(item, node["items"]) for item in value]
    if not isinstance(value, dict) or node.get(PRESERVE):
        return value
    if "additionalProperties" in node:
        return {k: v for k, v in value.items() if v is not None}
    if "properties" not in node:
        return value
    known = node["properties"]
    given = {k: v for k, v in value.items() if v is not None or k not in known}
    defaults = {k: n["default"] for k, n in known.items() if "default" in n}
    return {k: completed(v, known.get(k, {})) for k, v in (defaults | given).items()}


def places(value: Any, node: Node, path: str = "") -> Iterator[tuple[Any, Node, str]]:
    """Every value with the schema node that speaks of it."""
    yield value, node, path
    if isinstance(value, list) and "items" in node:
        for i, item in enumerate(value):
            yield from places(item, node["items"], f"{path}[{i}]")
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in node.get("properties", {}):
                yield from places(inner, node["properties"][key], f"{path}.{key}".lstrip("."))


class Crd:
    """The CRD of one file; says what an API server would refuse a manifest for."""

    def __init__(self, path: Path) -> None:
        self.resource = yaml.safe_load(path.read_text())
        (version,) = self.resource["spec"]["versions"]
        self.schema: Node = version["schema"]["openAPIV3Schema"]
        strict = json_schema(self.schema)
        strict["properties"] |= {"metadata": METADATA, "status": {}}
        self._validator = jsonschema_rs.validator_for(strict)
        self._rules: dict[str, cel.Program] = {}
        self._verdicts: dict[tuple[object, ...], bool] = {}

    def rules(self) -> Iterator[Node]:
        """Every CEL rule of the schema."""
        pending = [self.schema]
        while pending:
            node = pending.pop()
            yield from node.get("x-kubernetes-validations", ())
            pending += node.get("properties", {}).values()
            pending += [node[key] for key in ("items", "additionalProperties") if key in node]

    def refusals(self, manifest: Any) -> list[str]:
        """What is wrong with a manifest; nothing when it would be stored."""
        if not isinstance(manifest, dict):
            return ["must be an object"]
        value = completed(manifest, self.schema)
        wrong = [str(error) for error in self._validator.iter_errors(value)]
        wrong += self._duplicates(value)
        return wrong or self._broken_rules(value)

    def _duplicates(self, value: Node) -> list[str]:
        wrong = []
        for items, node, path in places(value, self.schema):
            if node.get("x-kubernetes-list-type") == "map" and isinstance(items, list):
                (key,) = node["x-kubernetes-list-map-keys"]
                names = [item.get(key) for item in items if isinstance(item, dict)]
                wrong += [f"{path}: Duplicate value" for n in names if names.count(n) > 1][:1]
        return wrong

    def _broken_rules(self, value: Node) -> list[str]:
        wrong = []
        for inner, node, path in places(value, self.schema):
            for rule in node.get("x-kubernetes-validations", ()):
                if not self._holds(rule["rule"], inner):
                    wrong.append(f"{path}: {rule['message']}")
        return wrong

    def _holds(self, rule: str, value: Any) -> bool:
        seen = (rule, type(value), value) if isinstance(value, int | float | str) else None
        if seen is None or seen not in self._verdicts:
            program = self._rules.get(rule) or self._rules.setdefault(rule, cel.compile(rule))
            try:
                holds = program.execute({"self": value}) is True
            except (RuntimeError, ValueError):  # as in the API server: an error is a refusal
                holds = False
            if seen is None:
                return holds
            self._verdicts[seen] = holds
        return self._verdicts[seen]


@dataclass(frozen=True, slots=True)
class Sample:
    """A manifest of crds/samples, and for an invalid one what must be said."""

    name: str
    manifest: Any
    said: dict[str, str]


def read_sample(path: Path) -> Sample:
    """The comment lines on top of an invalid sample name field and messages."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    said = dict(line[2:].split(": ", 1) for line in lines if ": " in line)
    return Sample(path.stem, load(path), said)


def verdict(manifest: Any) -> str:
    """What the parser refuses a manifest for; empty when it is accepted."""
    try:
        parse_service(manifest)
    except BadInput as refusal:
        return str(refusal) or "refused"
    return ""


OPAQUE = ("podTemplate",)
"""Checked by a dry run in the cluster, not here."""
ODD: tuple[Any, ...] = (
    None, True, False, {}, [], [None], {"x": 1}, ["x"], [{}],
    -1, 0, 1, 2, 7, 10**6, 10**12, 0.5, 2.0, 2.5, 99.5,
    "", " ", "x", "X", "a-b", "a-", "-a", "a.b", "a_b", "a/b", "ä", "x\n", "x" * 41, "x" * 129,
    "x" * 254, "x" * 513, "0", "1", "2", "-1", "+1", "1.5", "1.", ".5", "1e3", "nan", "0x1",
    "0.5", "0.9999999", "0.9999990", "1" * 33, "0.01", "0.009999", "0.99", "0.990001", "0.001",
    "0.0009", "99.999", "99.9991", "100", "1000", "1000.000001", "10000", "10000.000001",
    "0s", "1ms", "0.999999ms", "0.9999999ms", "1s", "999.999999ms", "1m", "1h", "1h0.000001ms",
    "24h", "24h0.000001ms", "1000000000ms", "1h30m", "1.5h", "5", "5 s", "1d", "90d", "91d", "07d",
    "1d12h", "23h", "25h", "2160h", "2161h", "99999h", "1s" * 16, "1s" * 17,
    "1Ki", "1.5Gi", "1GB", "1 Gi", "500m", "1E", "1n",
    "0%", "1%", "05%", "100%", "101%", "-1%",
    "builtin://tiny", "builtin://tiny?x=1", "builtin://sim", "builtin://sim?profile=h200",
    "builtin://sim?profile=", "builtin://sim?speed=1", "hf://a/b", "hf://a", "hf://a/b/c", "hf://",
    "file:///", "file:///x", "file:///x y", "file:///x ", " hf://a/b",
    "pvc://a/x y", "pvc://a/x\n", "file://x", "pvc://a/b", "pvc://A/b", "pvc://a",
    "pvc://a/", "/models/x", "./x", "s3://x/y", "ngram",
    "auto", "Auto", "cpu", "cuda", "Never", "Always", "Degrade", "promise", "chat", "code",
)  # fmt: skip


def dotted(path: Way) -> str:
    """`spec.sloClasses[].name`."""
    return "".join("[]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")


def leaves(value: Any, path: Way = ()) -> Iterator[Way]:
    """Every field of a spec, mappings and lists too."""
    if path:
        yield path
    if path and path[-1] in OPAQUE:
        return
    entries: list[tuple[str | int, Any]] = []
    entries += value.items() if isinstance(value, dict) else ()
    entries += enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from leaves(inner, (*path, key))


def changed(manifest: Any, path: Way, value: Any) -> Any:
    """A copy with another value at `path`; the value `...` removes the field."""
    copied = copy.deepcopy(manifest)
    place = copied
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copied


def small(manifest: Any, path: Way) -> tuple[Any, Way]:
    """The manifest cut down to what `path` needs, and the path in it: every run is cheap."""
    spec = manifest["spec"]
    kept = {key: spec[key] for key in ("model", "sloClasses", path[0])}
    if path[0] == "sloClasses" and len(path) > 1:
        kept["sloClasses"] = [spec["sloClasses"][path[1]]]
        path = ("sloClasses", 0, *path[2:])
    elif path[0] != "sloClasses":
        kept["sloClasses"] = [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}]
    if path[0] != "model":
        kept["model"] = {"source": "builtin://tiny"}
    return manifest | {"spec": kept}, ("spec", *path)


def odd_manifests(manifests: list[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Field, odd value, and a manifest that is right but for that one."""
    done = set()
    for sample in manifests:
        for path in leaves(sample["spec"]):
            name = dotted(("spec", *path))
            if path[-1] in OPAQUE or name in done:
                continue
            done.add(name)
            manifest, place = small(sample, path)
            for value in ODD if isinstance(path[-1], int) else (..., *ODD):
                yield name, value, changed(manifest, place, value)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of pyproject.toml."""
    return next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())


@pytest.fixture(scope="session")
def crd(root: Path) -> Crd:
    """The committed CRD."""
    return Crd(root / "crds" / "sloservices.sloserve.io.yaml")


@pytest.fixture(scope="session")
def valid(root: Path) -> list[Sample]:
    """crds/samples/valid."""
    return [read_sample(path) for path in sorted((root / "crds/samples/valid").glob("*.yaml"))]


@pytest.fixture(scope="session")
def invalid(root: Path) -> list[Sample]:
    """crds/samples/invalid."""
    return [read_sample(path) for path in sorted((root / "crds/samples/invalid").glob("*.yaml"))]


@pytest.fixture(scope="session")
def parser_says() -> Callable[[Any], str]:
    """What the parser refuses a manifest for."""
    return verdict


@pytest.fixture(scope="session")
def odd(valid: list[Sample]) -> list[tuple[str, Any, Any]]:
    """Field, odd value, and a manifest that is right but for that one; thousands of them."""
    return [
        (name, value, as_json(manifest))
        for name, value, manifest in odd_manifests([s.manifest for s in valid])
    ]


@pytest.fixture(scope="session", name="changed")
def changed_fixture() -> Callable[[Any, Way, Any], Any]:
    """A copy with another value at a path; the value `...` removes the field."""
    return changed


@pytest.fixture(scope="session", name="leaves")
def leaves_fixture() -> Callable[[Any], Iterator[Way]]:
    """The path of every field of a value."""
    return leaves


@pytest.fixture(scope="session", name="dotted")
def dotted_fixture() -> Callable[[Way], str]:
    """`spec.sloClasses[].name`."""
    return dotted


@pytest.fixture(scope="session")
def parsed() -> Callable[[Any], ServiceSpec]:
    """The parser."""
    return parse_service
