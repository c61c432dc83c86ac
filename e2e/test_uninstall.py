"""Uninstall leaves the CRD and the services, which serve on; a reinstall takes them up again."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from e2e.harness.kubectl import Kubectl
from e2e.harness.service import Service
from e2e.harness.traffic import Traffic
from e2e.harness.waiting import until

Release = Any
CRD = ("crd", "sloservices.sloserve.io")


@pytest.fixture
def other(changing: Release) -> Iterator[Release]:
    """A release of another name for the same services; not installed yet."""
    made = replace(changing, name=f"{changing.name}-again")
    yield made
    made.helm("uninstall", made.name, "--wait", "--ignore-not-found")


def test_services_outlive_the_release_and_any_other_takes_them_up(
    changing: Release, other: Release, service: Service, cluster: Kubectl
) -> None:
    service.ready()
    served, gateways = service.processes("replica"), service.processes("gateway")
    crd = cluster.get(*CRD)
    assert crd is not None
    with Traffic(service, rate=3.0) as traffic:
        uninstall(changing)
        kept = cluster.get(*CRD)
        assert kept is not None
        assert kept["metadata"]["uid"] == crd["metadata"]["uid"]
        told = traffic.num_ended
        until(lambda: traffic.num_ended > told + 5, "requests go on without an operator")

        changing.install()
        service.change(gateway={"maxHops": 2})
        service.wait_ready()

        uninstall(changing)
        notes = other.install("--set", f"watch.selector={changing.selector}")
        books = crd["metadata"].get("annotations", {})
        owner = books.get("meta.helm.sh/release-name")
        home = books.get("meta.helm.sh/release-namespace")
        whose = f"that of release {home}/{owner}" if owner else "there already, not made by Helm"
        assert f"The CRD is {whose}: it was left as it is" in notes
        service.change(gateway={"maxHops": 3})
        service.wait_ready()
        other.helm("uninstall", other.name, "--wait")
    assert traffic.seen.lost == []
    assert service.processes("replica") == served
    assert service.processes("gateway") == gateways


def uninstall(release: Release) -> None:
    """And wait until no operator is left."""
    release.helm("uninstall", release.name, "--wait")
    label = f"app.kubernetes.io/instance={release.name}"
    until(lambda: not release.kubectl.list("pods", label), "the operator is gone")


def test_a_deleted_service_takes_everything_with_it(service: Service, kubectl: Kubectl) -> None:
    service.ready()
    assert len(service.children()) > 10
    kubectl("delete", service.ref, "--timeout=30s")
    until(lambda: service.children() == [], "all its children are gone")
