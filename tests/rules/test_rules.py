"""What is written for a service: whole, valid, bounded, and only about itself."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloserve.http.config import load_manifest
from sloserve.rules import (
    Alert,
    Group,
    Recording,
    RuleSettings,
    operator_groups,
    service_groups,
)
from sloserve.rules.kubernetes import operator_rule, service_rule
from sloserve.slo import parse_service


def alerts(groups: tuple[Group, ...]) -> list[Alert]:
    return [rule for group in groups for rule in group.rules if isinstance(rule, Alert)]


@pytest.mark.parametrize("percent", ["1", "50", "90", "95", "99", "99.9", "99.999"])
@pytest.mark.parametrize("period", ["1d", "7d", "30d", "90d"])
def test_names_of_groups_and_series_never_meet(groups_of: Any, percent: str, period: str) -> None:
    groups = groups_of({"chat": percent, "code": 99}, period=period)
    names = [group.name for group in groups]
    assert len(names) == len(set(names))
    series = [
        (rule.record, tuple(sorted(rule.labels.items())))
        for group in groups
        for rule in group.rules
        if isinstance(rule, Recording)
    ]
    assert len(series) == len(set(series))


def test_promtool_accepts_what_is_written(check: Any, groups_of: Any) -> None:
    check(groups_of({"chat": 90, "code": "99.999"}, period="1d"))
    check(groups_of({"chat": 99}, settings=RuleSettings(namespace="team-a", slow_rungs=False)))
    check(operator_groups())


def test_the_number_of_rules_is_bounded(groups_of: Any) -> None:
    groups = groups_of({f"class-{i}": 99 for i in range(16)})
    assert sum(len(group.rules) for group in groups) < 500


def test_every_alert_says_how_bad_whose_what_binds_and_what_to_do(groups_of: Any) -> None:
    found = alerts((*groups_of({"chat": 99, "code": 90}), *operator_groups()))
    assert len({a.alert for a in found}) == 13
    for alert in found:
        assert {"severity", "service", "slo_class"} <= alert.labels.keys()
        assert alert.labels["severity"] in ("critical", "warning")
        assert all(
            alert.annotations[name]
            for name in ("summary", "description", "constraint", "runbook_url", "dashboard")
        )


def test_a_namespace_goes_into_every_selector_and_every_label(groups_of: Any) -> None:
    groups = groups_of({"chat": 99}, settings=RuleSettings(namespace="team-a"))
    for group in groups:
        assert group.name.startswith("sloserve/team-a/assistant/")
        for rule in group.rules:
            assert rule.labels["namespace"] == "team-a"
            assert rule.expr.startswith("vector(") or 'namespace="team-a"' in rule.expr


def test_labels_for_alertmanager_come_on_every_alert(groups_of: Any) -> None:
    groups = groups_of({"chat": 99}, settings=RuleSettings(labels={"team": "serving"}))
    assert all(alert.labels["team"] == "serving" for alert in alerts(groups))


def test_a_service_without_gateways_is_not_missed(groups_of: Any) -> None:
    names = {a.alert for a in alerts(groups_of({"chat": 99}, gateway={"replicas": 0}))}
    assert "SloserveMetricsMissing" not in names
    assert "SloserveFastBurn" in names


def test_rules_follow_a_class_change_and_nothing_else(a_service: Any) -> None:
    before = service_groups(a_service({"chat": 99}))
    assert before == service_groups(a_service({"chat": 99}, replicas=3))
    after = service_groups(a_service({"chat": "99.5", "code": 95}))
    assert {g.name for g in after} - {g.name for g in before} == {
        "sloserve/assistant/code",
        "sloserve/assistant/code/period",
    }
    assert before[0] != after[0]


def test_a_prometheus_rule_is_found_by_labels_in_the_namespace_asked_for(a_service: Any) -> None:
    settings = RuleSettings(namespace="team-a")
    rule: Any = service_rule(
        a_service(),
        settings,
        name="assistant-slo",
        namespace="monitoring",
        labels={"release": "stack"},
    )
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["metadata"] == {
        "name": "assistant-slo",
        "namespace": "monitoring",
        "labels": {"release": "stack"},
    }
    names = [group["name"] for group in rule["spec"]["groups"]]
    assert names[0] == "sloserve/team-a/assistant/chat"
    other: Any = operator_rule(settings, name="operator", namespace="monitoring", labels={})
    assert [g["name"] for g in other["spec"]["groups"]] == ["sloserve/operator"]


def test_the_default_example_has_rules(root_examples: Any, check: Any) -> None:
    for path in root_examples:
        check(service_groups(load_manifest(path)))


@given(
    percents=st.lists(
        st.decimals("1", "99.999", places=3).map(str), min_size=1, max_size=4, unique=True
    ),
    days=st.integers(1, 90),
)
@settings(max_examples=30)
def test_any_manifest_gives_rules_that_read_only_its_own_series(
    percents: list[str], days: int
) -> None:
    spec = parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "assistant"},
            "spec": {
                "model": {"source": "builtin://tiny"},
                "sloClasses": [
                    {
                        "name": f"c{i}",
                        "ttft": {"target": "1s"},
                        "tpot": "50ms",
                        "objectivePercent": f"{percent}",
                    }
                    for i, percent in enumerate(percents)
                ],
                "observability": {"period": f"{days}d"},
            },
        }
    )
    groups = service_groups(spec)
    assert len(groups) == 2 * len(percents) + 1
    for group in groups:
        assert group.rules
        for rule in group.rules:
            assert rule.labels["service"] == "assistant"
            assert "vector(" in rule.expr or 'service="assistant"' in rule.expr
