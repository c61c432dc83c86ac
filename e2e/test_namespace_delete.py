"""A namespace with a running service goes away, whether the operator is there or not."""

from typing import Any

from e2e.harness.kubectl import Kubectl
from e2e.harness.service import Service

Release = Any


def delete(kubectl: Kubectl) -> None:
    """Delete the namespace and wait until it is gone."""
    kubectl("delete", "namespace", kubectl.namespace, "--timeout=120s", timeout_s=150)
    assert kubectl.get("namespace", kubectl.namespace) is None


def test_a_namespace_with_a_running_service_goes_away(service: Service, kubectl: Kubectl) -> None:
    service.ready()
    delete(kubectl)


def test_it_goes_away_while_no_operator_runs(
    release: Release, service: Service, kubectl: Kubectl
) -> None:
    service.ready()
    with release.away():
        delete(kubectl)
