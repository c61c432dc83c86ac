"""Names, labels, annotations and ports of a service's children: frozen once shipped."""

from sloserve_operator.api import FIELD_MANAGER, GROUP, Ref

REPLICA = "replica"
GATEWAY = "gateway"

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
OURS = f"{MANAGED_BY}={FIELD_MANAGER}"
"""Selects every child of every service."""

APPLIED = f"{GROUP}/applied"
"""Hash of the child as we want it, so that fields that were removed are applied as well."""
DECLARED = f"{GROUP}/declared"
"""Hash of the part of the spec that a pod template was made from; on Deployments and pods."""
TEMPLATE = f"{GROUP}/template"
"""The pod template that was applied, kept over operator upgrades."""
CONFIG_GENERATION = f"{GROUP}/config-generation"
"""On pods; a change makes the kubelet look at the mounted configuration now."""
COUNTED = f"{GROUP}/counted"
"""On gateway pods: which of their counters are in the error budget already."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

REPLICA_PORT = 8000
GATEWAY_PORT = 8080
INTERNAL_PORT = 9090
SERVICE_PORT, SERVICE_TLS_PORT = 80, 443

CONFIG_FILE = "service.yaml"


def child(service: str, part: str) -> str:
    """Name of the children of one part: `assistant-replica`, `assistant-gateway`."""
    return f"{service}-{part}"


def config(service: str) -> str:
    """Name of the ConfigMap with the resolved spec."""
    return f"{service}-config"


def deployment(service: str, part: str) -> Ref:
    """The Deployment of replicas or gateways."""
    return Ref("Deployment", child(service, part))


def labels(service: str, part: str | None = None) -> dict[str, str]:
    """Labels of a child, and of the pods of a part."""
    named = {
        "app.kubernetes.io/name": "sloserve",
        INSTANCE: service,
        "app.kubernetes.io/part-of": "sloserve",
        MANAGED_BY: FIELD_MANAGER,
    }
    return named if part is None else named | {COMPONENT: part}


def selector(service: str, part: str) -> dict[str, str]:
    """What selects the pods of one part and nothing else; immutable in a Deployment."""
    return {INSTANCE: service, COMPONENT: part, MANAGED_BY: FIELD_MANAGER}


def selector_text(service: str, part: str) -> str:
    """The same as the scale subresource wants it."""
    return ",".join(f"{name}={value}" for name, value in sorted(selector(service, part).items()))


def endpoint(service: str, namespace: str, *, tls: bool) -> str:
    """Base URL for clients in the cluster."""
    return f"http{'s' if tls else ''}://{child(service, GATEWAY)}.{namespace}.svc/v1"
