"""Kubernetes objects as the API server speaks them: plain JSON, and where each kind lives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Obj = dict[str, Any]
"""One object, or a part of one, as JSON values."""

GROUP = "sloserve.io"
API_VERSION = f"{GROUP}/v1alpha1"
SERVICE_KIND = "SLOService"
FIELD_MANAGER = "sloserve-operator"


class Key(NamedTuple):
    """Which service: its namespace and name."""

    namespace: str
    name: str


class Ref(NamedTuple):
    """Which object of a namespace."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object: where its URLs are."""

    kind: str
    api_version: str
    plural: str
    optional: bool = False
    """A cluster may not know it."""

    @property
    def group(self) -> str:
        """The API group; empty for the core one."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The version in its group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str | None, name: str = "", *, sub: str = "") -> str:
        """The URL path of the collection (all namespaces: None), or of one object in it."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        where = f"/namespaces/{namespace}" if namespace else ""
        tail = f"/{name}" if name else ""
        return f"{root}{where}/{self.plural}{tail}{f'/{sub}' if sub else ''}"


SERVICE = Kind(SERVICE_KIND, API_VERSION, "sloservices")
POD = Kind("Pod", "v1", "pods")
EVENT = Kind("Event", "v1", "events")
CLAIM = Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")
POD_MONITOR = Kind("PodMonitor", "monitoring.coreos.com/v1", "podmonitors", optional=True)
PROMETHEUS_RULE = Kind(
    "PrometheusRule", "monitoring.coreos.com/v1", "prometheusrules", optional=True
)

CHILD_KINDS: Mapping[str, Kind] = {
    kind.kind: kind
    for kind in (
        Kind("ConfigMap", "v1", "configmaps"),
        Kind("Service", "v1", "services"),
        Kind("ServiceAccount", "v1", "serviceaccounts"),
        Kind("Deployment", "apps/v1", "deployments"),
        Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
        Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
        POD_MONITOR,
        PROMETHEUS_RULE,
    )
}
"""What a service is made of."""


def key_of(obj: Obj) -> Key:
    """Namespace and name of an object."""
    meta = obj["metadata"]
    return Key(meta.get("namespace", ""), meta["name"])


def ref_of(obj: Obj) -> Ref:
    """Kind and name of an object."""
    return Ref(obj["kind"], obj["metadata"]["name"])


def kind_of(obj: Obj) -> Kind:
    """The kind of a child."""
    return CHILD_KINDS[obj["kind"]]


def uid_of(obj: Obj) -> str:
    """The uid; empty for one that was never in a cluster."""
    return str(obj["metadata"].get("uid", ""))


def version_of(obj: Obj) -> str:
    """The resource version."""
    return str(obj["metadata"].get("resourceVersion", ""))


def annotation_of(obj: Obj, name: str) -> str | None:
    """The value of an annotation."""
    value = (obj["metadata"].get("annotations") or {}).get(name)
    return None if value is None else str(value)


def label_of(obj: Obj, name: str) -> str | None:
    """The value of a label."""
    value = (obj["metadata"].get("labels") or {}).get(name)
    return None if value is None else str(value)


def controller_of(obj: Obj) -> Obj | None:
    """The owner reference of the controlling SLOService, if one controls the object."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        group = str(owner.get("apiVersion", "")).partition("/")[0]
        if owner.get("controller") and group == GROUP and owner.get("kind") == SERVICE_KIND:
            return dict(owner)
    return None


def owner_reference(service: Obj) -> Obj:
    """
    What makes an object a child of `service`.

    Without `blockOwnerDeletion`: that would ask for a right on finalizers, and nobody waits here.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": SERVICE_KIND,
        "name": service["metadata"]["name"],
        "uid": uid_of(service),
        "controller": True,
    }
