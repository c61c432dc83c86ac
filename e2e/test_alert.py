"""Prometheus, with what the operator made for it: a burn alert comes and goes, boards have data."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.prometheus import (
    Prometheus,
    access,
    find_prometheus,
    prometheus,
    scrape_port,
    scrapes_of,
)
from e2e.harness.saturation import BULK, saturated
from e2e.harness.service import CHAT, Service
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

pytestmark = pytest.mark.alone

if TYPE_CHECKING:
    from e2e.conftest import Release

BOARD = Path(__file__).parents[1] / "charts/sloserve/files/dashboards/operator.json"
KINDS = ("podmonitors", "prometheusrules")
STRICT = {
    "name": "strict",
    "ttft": {"target": "1s"},
    "tpot": "200ms",
    "objectivePercent": 95,
    "onInfeasible": "Decline",
}
MAX_RUNNING = 4


def knows_the_kinds(cluster: Kubectl) -> bool:
    return all(cluster.get("crd", f"{kind}.monitoring.coreos.com") for kind in KINDS)


@pytest.fixture
def monitored(cluster: Kubectl) -> None:
    """A cluster that knows the Prometheus operator's kinds; our operator sees them by itself."""
    if knows_the_kinds(cluster):
        return
    folder = os.environ.get("E2E_OPTIONAL_KINDS")
    if not folder:
        pytest.skip("needs the Prometheus operator's CRDs: set E2E_OPTIONAL_KINDS to their folder")
    cluster("apply", "--server-side", "-f", folder)
    for kind in KINDS:
        crd = f"crd/{kind}.monitoring.coreos.com"
        cluster("wait", "--for=condition=Established", crd, "--timeout=60s")


@pytest.fixture
def start_prometheus(
    tmp_path: Path, release: "Release"
) -> Iterator[Callable[[Service], Prometheus]]:
    """Starts a Prometheus on a service and on the operator, with the service's own rules."""
    program = find_prometheus()
    if not program:
        pytest.skip("prometheus is not installed: put it on PATH, or its path into PROMETHEUS")
    running = []

    def start(service: Service) -> Prometheus:
        kubectl = service.kubectl
        monitor = kubectl.get("podmonitor", f"{service.name}-metrics")
        rule = kubectl.get("prometheusrule", f"{service.name}-slo")
        assert monitor
        assert rule
        via = access(kubectl, tmp_path)
        labels = {
            "app.kubernetes.io/instance": release.name,
            "app.kubernetes.io/component": "operator",
        }
        operator = scrape_port(
            "operator", namespace=release.namespace, labels=labels, port="metrics", via=via
        )
        scrapes = [*scrapes_of(monitor, via), operator]
        running.append(prometheus(program, tmp_path, scrapes=scrapes, rules=rule["spec"]))
        return running[-1].__enter__()

    yield start
    for one in running:
        one.__exit__(None, None, None)


def test_without_the_prometheus_operator_the_status_says_which_kinds_are_missing(
    cluster: Kubectl, service: Service
) -> None:
    if knows_the_kinds(cluster):
        pytest.skip("this cluster has the Prometheus operator's kinds")
    service.apply()
    told = service.until_condition("MonitoringReady", "True", "KindMissing")
    assert "PodMonitor (monitoring.coreos.com/v1)" in told["message"]
    assert "PrometheusRule (monitoring.coreos.com/v1)" in told["message"]
    service.change(observability={"rules": "Always"})
    service.until_condition("MonitoringReady", "False", "KindMissing")


def test_rules_and_board_follow_the_classes(monitored: None, service: Service) -> None:
    service.ready()
    service.until_condition("MonitoringReady", "True", "MonitorExists")
    assert classes_in_rules(service) == {"chat", "all"}
    assert "strict" not in board_text(service)
    service.change(sloClasses=[CHAT, STRICT])
    until(lambda: classes_in_rules(service) == {"chat", "strict", "all"}, "the rules follow")
    until(lambda: "strict" in board_text(service), "the board follows")
    service.change(sloClasses=[CHAT])
    until(lambda: classes_in_rules(service) == {"chat", "all"}, "the class is gone from the rules")


def classes_in_rules(service: Service) -> set[str]:
    """Classes that some rule speaks of."""
    rule = service.kubectl.get("prometheusrule", f"{service.name}-slo")
    assert rule
    rules = [rule for group in rule["spec"]["groups"] for rule in group["rules"]]
    return {name for one in rules if (name := one.get("labels", {}).get("slo_class"))}


def board_text(service: Service) -> str:
    board = service.kubectl.get("configmap", f"{service.name}-board")
    assert board
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    return "".join(board["data"].values())


def test_a_burn_alert_fires_while_replicas_are_too_slow_and_clears_afterwards(
    monitored: None, service: Service, start_prometheus: Callable[[Service], Prometheus]
) -> None:
    service.ready(sloClasses=[STRICT, BULK], engine={"maxRunning": MAX_RUNNING})
    service.until_condition("MonitoringReady", "True", "MonitorExists")
    (replica,) = service.pod_names("replica")
    watching = start_prometheus(service)
    until(lambda: all_up(watching), "replica, gateway and operator are scraped", timeout_s=60)

    with Traffic(service, rate=6, output_tokens=20, classes=[STRICT]) as traffic:
        with saturated(service, replica, num_requests=MAX_RUNNING):
            alert = until(lambda: burning(watching), "the alert fires", timeout_s=120)
            assert "of the requests missed their promise" in alert["annotations"]["description"]
            until(lambda: constraint_of(watching) == "TTFT", "the alert says what binds")
        until(lambda: not burning(watching), "the alert clears", timeout_s=240)
        until(lambda: set(watching.rule_health().values()) == {"ok"}, "every rule evaluates")
        until(lambda: panels_without_data(watching) == [], "the operator's board has data")
    assert traffic.seen.attainment("strict") < 1.0


def all_up(watching: Prometheus) -> bool:
    health = watching.targets()
    return len(health) >= 3 and set(health.values()) == {"up"}


def burning(watching: Prometheus) -> Obj:
    """The page about the class `strict`; {} while there is none."""
    found = watching.firing("SloserveFastBurn")
    return next((a for a in found if a["labels"]["slo_class"] == "strict"), {})


def constraint_of(watching: Prometheus) -> str:
    return str(burning(watching).get("annotations", {}).get("constraint"))


def panels_without_data(watching: Prometheus) -> list[str]:
    """Queries of the operator's board that return no number."""
    panels = json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    queries = [t["expr"] for panel in panels for t in panel.get("targets", ())]
    assert len(queries) > 8

    def numbers(expr: str) -> list[float]:
        found = watching.query(expr.replace("$__rate_interval", "30s"))
        return [float(sample["value"][1]) for sample in found]

    return [expr for expr in queries if not any(not math.isnan(n) for n in numbers(expr))]
