"""
What Grafana would ask of a Prometheus: the queries of every panel and of every variable.

Variables are filled in as Grafana does for Prometheus: a chosen value as a regular expression,
several as `(a|b)`, "All" as the variable's own word for it.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.prometheus import Prometheus, Series

from sloserve.rules.boards import BOARDS, board_text

RATE_INTERVAL = "1m"
"""What `$__rate_interval` is on a data source whose scrape interval nobody has set."""
_VARIABLE = re.compile(r"\$(\w+)")
_LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")
_SPECIAL = re.compile(r"[\\^$*+?.()|{}\[\]]")

Choice = Mapping[str, Sequence[str]]
"""The values chosen for each variable; none chosen is All."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query of one panel."""

    board: str
    panel: str
    expr: str
    legend: str
    instant: bool

    @property
    def labels(self) -> set[str]:
        """The labels that its legend names."""
        return set(_LEGEND.findall(self.legend))

    def answer(self, prometheus: Prometheus, choice: Choice) -> list[Series]:
        """What a panel would show. Raises Refused."""
        expr = filled(self.expr, choice)
        if self.instant:
            return prometheus.instant(expr)
        return prometheus.over(expr, last_s=60.0, step_s=5.0)


def board(name: str) -> Any:
    """A board that travels with the package."""
    return json.loads(board_text(name))


def questions() -> list[Question]:
    """Every query of every panel of every board."""
    return [
        Question(
            board=name,
            panel=panel["title"],
            expr=target["expr"],
            legend=target.get("legendFormat") or "",
            instant=bool(target.get("instant")),
        )
        for name in BOARDS
        for panel in board(name)["panels"]
        for target in panel.get("targets", ())
    ]


def choices(prometheus: Prometheus, name: str) -> dict[str, list[str]]:
    """The values that a board's drop-down lists would offer, each list with All in those above."""
    found: dict[str, list[str]] = {}
    for variable in board(name)["templating"]["list"]:
        if variable["type"] == "query":
            query = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert query, variable["query"]
            found[variable["name"]] = prometheus.label_values(filled(query[1], {}), query[2])
    return found


def filled(expr: str, choice: Choice) -> str:
    """A query with its variables filled in. Raises KeyError for one that no board has."""
    texts = {name: _chosen(variable, choice) for name, variable in _variables().items()}
    texts["__rate_interval"] = RATE_INTERVAL
    return _VARIABLE.sub(lambda found: texts[found[1]], expr)


@functools.cache
def _variables() -> dict[str, Any]:
    """By name; one that several boards have is the same in all."""
    return {v["name"]: v for name in BOARDS for v in board(name)["templating"]["list"]}


def _chosen(variable: Any, choice: Choice) -> str:
    values = [_SPECIAL.sub(r"\\\\\g<0>", value) for value in choice.get(variable["name"], ())]
    if not values:
        return str(variable.get("allValue") or variable["query"])
    return values[0] if len(values) == 1 else f"({'|'.join(values)})"
