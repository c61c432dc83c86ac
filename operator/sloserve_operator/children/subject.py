"""What every child is rendered from."""

from dataclasses import dataclass

from sloserve.slo import ServiceSpec
from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, Obj
from sloserve_operator.settings import OperatorSettings


@dataclass(frozen=True, slots=True)
class Subject:
    """A service to render: its spec as parsed, who owns the children, how the operator is set."""

    spec: ServiceSpec
    owner: Obj
    """The owner reference that makes an object a child."""
    settings: OperatorSettings
    num_replicas: int
    """Replicas wanted now: the spec's, or what autoscaling came to."""
    kinds: frozenset[str] = frozenset()
    """Optional kinds that the cluster knows."""

    def child(self, kind: str, name: str, body: Obj, *, part: str | None = None) -> Obj:
        """An object of this service with its labels and its owner."""
        return {
            "apiVersion": CHILD_KINDS[kind].api_version,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": self.spec.namespace,
                "labels": names.labels(self.spec.name, part),
                "ownerReferences": [self.owner],
            },
            **body,
        }

    def named(self, part: str) -> str:
        """The name of the children of one part."""
        return names.child(self.spec.name, part)
