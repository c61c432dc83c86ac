"""No panel is empty, no drop-down list, and none of the boards that others made."""

from typing import Any

import pytest
from bench.boards import choices, questions
from bench.prometheus import Prometheus
from bench.stock import sloth_queries, vllm_queries

from sloserve.metrics import EXPORTED
from sloserve.rules.boards import BOARDS

pytestmark = pytest.mark.slow
CHOSEN = {"service": ["demo"], "slo_class": ["chat", "hopeless"]}
"""Namespaces are those of a cluster: here no series has one."""


@pytest.mark.parametrize("choice", [{}, CHOSEN], ids=["all", "chosen"])
def test_every_query_of_every_panel_returns_data(
    prometheus: Prometheus, answered: Any, choice: Any
) -> None:
    asked = questions()
    assert len(asked) > 80
    answered({q.expr: lambda q=q: q.answer(prometheus, choice) for q in asked})


def test_every_label_that_a_legend_names_is_in_the_answer(prometheus: Prometheus) -> None:
    for question in questions():
        for series in question.answer(prometheus, {}):
            assert question.labels <= series.labels.keys(), question


def test_drop_down_lists_offer_what_there_is(prometheus: Prometheus, eventually: Any) -> None:
    expected = {
        "namespace": [],
        "service": ["demo"],
        "slo_class": ["chat", "hopeless"],
        "replica": ["replica-0", "replica-1"],
    }
    for name in BOARDS:

        def offers_all(name: str = name) -> bool:
            offered = choices(prometheus, name)
            return offered == {variable: expected[variable] for variable in offered}

        eventually(offers_all, lambda name=name: str(choices(prometheus, name)))


def test_queries_of_boards_and_pickers_made_by_others_return_data(
    prometheus: Prometheus, answered: Any, model: str
) -> None:
    exprs = [*vllm_queries(model), *sloth_queries("demo", "chat")]
    assert len(exprs) > 100
    answered({expr: lambda expr=expr: prometheus.instant(expr) for expr in exprs})


def test_every_declared_metric_is_exported_with_series(
    prometheus: Prometheus, answered: Any
) -> None:
    names = [name for metric in EXPORTED for name in metric.series_names]
    answered({name: lambda name=name: prometheus.instant(name) for name in names})
