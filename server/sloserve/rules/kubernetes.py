"""The same as objects that a Prometheus Operator and a Grafana sidecar pick up: plain mappings."""

from collections.abc import Mapping

from sloserve.rules.boards import board_text, service_board_text
from sloserve.rules.rule import Group, Json
from sloserve.rules.service import operator_groups, rules_file, service_groups
from sloserve.rules.settings import RuleSettings
from sloserve.slo import ServiceSpec

RULE_API_VERSION, RULE_KIND = "monitoring.coreos.com/v1", "PrometheusRule"
SIDECAR_LABELS = {"grafana_dashboard": "1"}
FOLDER_ANNOTATION = "grafana_folder"


def service_rule(
    spec: ServiceSpec,
    settings: RuleSettings,
    *,
    name: str,
    namespace: str,
    labels: Mapping[str, str],
) -> Json:
    """
    The PrometheusRule of a service.

    `labels` are what the Prometheus selects rules by (often `release: NAME`); `namespace` is where
    it looks for them, while `settings.namespace` is the service's own.
    """
    return _rule(service_groups(spec, settings), name, namespace, labels)


def operator_rule(
    settings: RuleSettings, *, name: str, namespace: str, labels: Mapping[str, str]
) -> Json:
    """The PrometheusRule of the operator itself."""
    return _rule(operator_groups(settings), name, namespace, labels)


def boards_config_map(
    names: tuple[str, ...],
    *,
    name: str,
    namespace: str,
    labels: Mapping[str, str] = SIDECAR_LABELS,
    folder: str = "sloserve",
) -> Json:
    """The ConfigMap that gives Grafana the boards for all services."""
    data = {f"sloserve-{board}.json": board_text(board) for board in names}
    return _config_map(data, name, namespace, labels, folder)


def service_board_config_map(
    spec: ServiceSpec,
    *,
    service_namespace: str,
    name: str,
    namespace: str,
    labels: Mapping[str, str] = SIDECAR_LABELS,
    folder: str = "sloserve",
) -> Json:
    """The ConfigMap with a service's own board; it follows the classes of the manifest."""
    text = service_board_text(spec, namespace=service_namespace)
    file = f"sloserve-{service_namespace}-{spec.name}.json"
    return _config_map({file: text}, name, namespace, labels, folder)


def _rule(groups: tuple[Group, ...], name: str, namespace: str, labels: Mapping[str, str]) -> Json:
    return {
        "apiVersion": RULE_API_VERSION,
        "kind": RULE_KIND,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": rules_file(groups),
    }


def _config_map(
    data: Mapping[str, str], name: str, namespace: str, labels: Mapping[str, str], folder: str
) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(labels),
            "annotations": {FOLDER_ANNOTATION: folder},
        },
        "data": dict(data),
    }
