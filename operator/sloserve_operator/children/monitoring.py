"""What Prometheus and Grafana pick up: a monitor, rules, a board."""

from sloserve.rules.kubernetes import FOLDER_ANNOTATION, SIDECAR_LABELS, service_board_config_map
from sloserve.rules.service import rules_file, service_groups
from sloserve.rules.settings import RuleSettings
from sloserve.slo.cluster import Auto
from sloserve_operator import names
from sloserve_operator.api import FIELD_MANAGER, POD_MONITOR, PROMETHEUS_RULE, Obj
from sloserve_operator.children.subject import Subject


def monitoring(subject: Subject) -> list[Obj]:
    """The objects that are wanted and whose kinds the cluster knows."""
    wanted, kinds = subject.spec.observability, subject.kinds
    children = []
    if wanted.monitors is not Auto.NEVER and POD_MONITOR.kind in kinds:
        children.append(pod_monitor(subject))
    if wanted.rules is not Auto.NEVER and PROMETHEUS_RULE.kind in kinds:
        children.append(prometheus_rule(subject))
    if wanted.dashboard is Auto.ALWAYS or (wanted.dashboard is Auto.AUTO and kinds):
        children.append(board(subject))
    return children


def pod_monitor(subject: Subject) -> Obj:
    """Scrapes replicas and gateways; a pod without a port of that name is left out."""
    spec = subject.spec
    parts = [names.REPLICA, names.GATEWAY]
    body = {
        "selector": {
            "matchLabels": {names.INSTANCE: spec.name, names.MANAGED_BY: FIELD_MANAGER},
            "matchExpressions": [{"key": names.COMPONENT, "operator": "In", "values": parts}],
        },
        "podMetricsEndpoints": [_scrape("http", names.REPLICA), _scrape("internal", names.GATEWAY)],
    }
    monitor = subject.child("PodMonitor", names.child(spec.name, "metrics"), {"spec": body})
    monitor["metadata"]["labels"] |= subject.settings.monitor_labels
    return monitor


def _scrape(port: str, part: str) -> Obj:
    only = {
        "action": "keep",
        "sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"],
        "regex": part,
    }
    return {"port": port, "path": "/metrics", "interval": "15s", "relabelings": [only]}


def prometheus_rule(subject: Subject) -> Obj:
    """Recording rules and burn-rate alerts of the service's classes."""
    spec = subject.spec
    settings = RuleSettings(namespace=spec.namespace, runbook_url=subject.settings.runbook_url)
    groups = service_groups(spec, settings)
    rule = subject.child(
        "PrometheusRule", names.child(spec.name, "slo"), {"spec": rules_file(groups)}
    )
    rule["metadata"]["labels"] |= subject.settings.monitor_labels
    return rule


def board(subject: Subject) -> Obj:
    """The service's board, as Grafana's sidecar loads it."""
    spec, name = subject.spec, names.child(subject.spec.name, "board")
    made: Obj = service_board_config_map(
        spec, service_namespace=spec.namespace, name=name, namespace=spec.namespace
    )
    child = subject.child("ConfigMap", name, {"data": made["data"]})
    child["metadata"]["labels"] |= SIDECAR_LABELS
    folder = made["metadata"]["annotations"][FOLDER_ANNOTATION]
    child["metadata"]["annotations"] = {FOLDER_ANNOTATION: folder}
    return child
