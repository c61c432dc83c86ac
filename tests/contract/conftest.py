"""
Reading PromQL as Prometheus does: which series a query wants, and which labels its result has.

A query that names a series nobody exports, matches or groups by a label that the series has not,
or joins two sides that can't meet, is a panel without data: that is what these tests are for.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser as p
import pytest

from sloserve.http.config import load_manifest
from sloserve.metrics import EXPORTED, Kind
from sloserve.rules import Alert, Group, Recording, operator_groups, service_groups

TARGET = frozenset({"job", "instance", "namespace"})
"""What Prometheus adds to every series that it scrapes."""
SETS = ("and", "or", "unless")
_VARIABLES = {"$__rate_interval": "5m", "$price": "2"}
_TEMPLATE_QUERY = re.compile(r"query `([^`]+)`")
_TEMPLATE_LABEL = re.compile(r"\$labels\.(\w+)")
_FOUND_LABEL = re.compile(r'label "(\w+)"')

Labels = frozenset[str]


@dataclass
class Reader:
    """Knows series and their labels; `problems` tells what is wrong with a query."""

    known: dict[str, Labels]
    used: set[str] = field(default_factory=set)

    def problems(self, expr: str, *, wants: Labels = frozenset()) -> list[str]:
        """What is wrong with a query whose result shall have the labels `wants`."""
        for name, text in _VARIABLES.items():
            expr = expr.replace(name, text)
        try:
            found = self.labels(p.parse(expr))
        except ValueError as error:
            return [f"{error} in: {expr}"]
        lacking = wants - found
        return [f"the result has no label {sorted(lacking)}: {expr}"] if lacking else []

    def labels(self, node: Any) -> Labels:
        """The labels of a node's result. Raises ValueError when it can't have any."""
        match node:
            case p.VectorSelector():
                return self._selector(node)
            case p.MatrixSelector():
                return self._selector(node.vector_selector)
            case p.ParenExpr() | p.UnaryExpr() | p.SubqueryExpr():
                return self.labels(node.expr)
            case p.AggregateExpr():
                return self._aggregate(node)
            case p.Call():
                return self._call(node)
            case p.BinaryExpr():
                return self._binary(node)
            case _:
                return frozenset()

    def _selector(self, node: Any) -> Labels:
        if node.name not in self.known:
            raise ValueError(f"nobody exports or records {node.name}")
        self.used.add(node.name)
        labels = self.known[node.name]
        matched = {matcher.name for matcher in node.matchers.matchers}
        _need(matched <= labels, f"{node.name} has no label {sorted(matched - labels)}")
        return labels

    def _aggregate(self, node: Any) -> Labels:
        inner = self.labels(node.expr)
        if str(node.op) in ("topk", "bottomk"):
            return inner
        if node.modifier is None:
            return frozenset()
        given = frozenset(node.modifier.labels)
        _need(given <= inner, f"groups by {sorted(given - inner)}, which is not there")
        return given if node.modifier.type == p.AggModifierType.By else inner - given

    def _call(self, node: Any) -> Labels:
        name = node.func.name
        if name == "vector":
            return frozenset()
        if name == "absent":
            self.labels(node.args[0])
            return frozenset(m.name for m in node.args[0].matchers.matchers)
        inner = [self.labels(arg) for arg in node.args]
        if name == "histogram_quantile":
            _need("le" in inner[1], "a quantile of what has no buckets")
            return inner[1] - {"le"}
        return inner[0]

    def _binary(self, node: Any) -> Labels:
        sides = [self.labels(side) for side in (node.lhs, node.rhs)]
        if any(_is_number(side) for side in (node.lhs, node.rhs)):
            return sides[1] if _is_number(node.lhs) else sides[0]
        left, right = sides
        modifier = node.modifier
        matching = modifier.matching if modifier is not None else None
        if matching is None:
            _need(left - TARGET == right - TARGET, f"{sorted(left)} never meets {sorted(right)}")
            return left
        given = frozenset(matching.labels)
        if matching.type == p.LabelModifierType.Exclude:
            _need(left - given == right - given, f"ignoring {sorted(given)} is not enough")
            return left - given
        _need(given <= left & right, f"on {sorted(given)}, which both sides must have")
        group = frozenset(modifier.group_labels or ())
        if modifier.card == p.VectorMatchCardinality.ManyToOne:
            _need(group <= right, f"takes {sorted(group - right)} from where it is not")
            return left | group
        return left if str(node.op) in SETS else given


def _is_number(node: Any) -> bool:
    if isinstance(node, p.ParenExpr):
        return _is_number(node.expr)
    if isinstance(node, p.BinaryExpr):
        return _is_number(node.lhs) and _is_number(node.rhs)
    return isinstance(node, p.NumberLiteral)


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def exported() -> dict[str, Labels]:
    """The series that the code exports, with those labels that Prometheus adds."""
    series: dict[str, Labels] = {}
    for metric in EXPORTED:
        for name in metric.series_names:
            le = {"le"} if metric.kind is Kind.HISTOGRAM and name.endswith("_bucket") else set()
            series[name] = frozenset(metric.labels) | TARGET | le
    return series


def with_rules(series: Mapping[str, Labels], groups: tuple[Group, ...]) -> dict[str, Labels]:
    """The same and what some rules record, and Prometheus' own record of alerts."""
    known = dict(series)
    alerts: Labels = frozenset({"alertname", "alertstate", "namespace"})
    for group in groups:
        for rule in group.rules:
            if isinstance(rule, Recording):
                # a service in Kubernetes has its namespace on every recorded series
                known[rule.record] = frozenset(rule.labels) | {"namespace"}
            else:
                alerts |= frozenset(rule.labels)
    known["ALERTS"] = alerts
    known["ALERTS_FOR_STATE"] = alerts - {"alertstate"}
    return known


@pytest.fixture(scope="session")
def groups(root: Path) -> tuple[Group, ...]:
    """The rules of the example, and of the operator."""
    spec = load_manifest(root / "examples" / "sloservice.yaml")
    return (*service_groups(spec), *operator_groups())


@pytest.fixture
def series() -> dict[str, Labels]:
    """What the code exports."""
    return exported()


@pytest.fixture
def make_reader() -> Any:
    """A reader who knows these series and what these rules record."""

    def make(series: Mapping[str, Labels], groups: tuple[Group, ...]) -> Reader:
        return Reader(with_rules(series, groups))

    return make


@pytest.fixture
def reader(series: dict[str, Labels], groups: tuple[Group, ...]) -> Reader:
    """A reader who knows everything."""
    return Reader(with_rules(series, groups))


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of pyproject.toml."""
    return next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())


@pytest.fixture
def rule_problems() -> Any:
    """What is wrong with the queries of some rules."""

    def find(reader: Reader, groups: tuple[Group, ...]) -> list[str]:
        return [problem for group in groups for rule in group.rules for problem in of(reader, rule)]

    def of(reader: Reader, rule: Recording | Alert) -> Iterator[str]:
        if isinstance(rule, Recording):
            yield from reader.problems(rule.expr)
            return
        texts = " ".join(rule.annotations.values())
        named = frozenset(_TEMPLATE_LABEL.findall(texts)) - rule.labels.keys()
        yield from reader.problems(rule.expr, wants=named)
        for query in _TEMPLATE_QUERY.findall(texts):
            yield from reader.problems(query, wants=frozenset(_FOUND_LABEL.findall(texts)))

    return find
