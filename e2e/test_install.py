"""Install: the notes say what works, rights are the least there are, second looks find nothing."""

import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import Service
from e2e.harness.waiting import until

ROOT = Path(__file__).parents[1]
GROUP = "sloserve.io"
Release = Any
MakeNamespace = Callable[[str], Kubectl]


def may(
    kubectl: Kubectl, user: str, verb: str, resource: str, *, group: str = "", namespace: str = ""
) -> bool:
    """Whether the API server lets a user do that; in every namespace when none is named."""
    resource, _, subresource = resource.partition("/")
    asked = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": {**asked, "namespace": namespace}},
    }
    said = kubectl("create", "-f", "-", "-o", "json", text=json.dumps(review))
    return bool(json.loads(said)["status"]["allowed"])


def account(release: Release) -> str:
    """The operator, as the API server calls it."""
    return f"system:serviceaccount:{release.namespace}:{release.operator.partition('/')[2]}"


def test_the_notes_name_three_commands_that_work(release: Release, kubectl: Kubectl) -> None:
    notes = release.helm("get", "notes", release.name)
    commands = [line.strip() for line in notes.splitlines() if line.startswith("  kubectl ")]
    assert len(commands) == 3, notes
    status, apply, watch = (
        shlex.split(command.replace("NAMESPACE", kubectl.namespace))[1:] for command in commands
    )
    assert "successfully rolled out" in kubectl(*status)
    # No pods: the sample needs PyTorch, and has a story of its own.
    kubectl("create", "quota", "none", "--hard=pods=0")
    done = subprocess.run([kubectl.program, *apply], cwd=ROOT, capture_output=True, text=True)
    assert "sloservice.sloserve.io/assistant created" in done.stdout, done.stderr
    if release.selector:
        kubectl("label", "slosvc/assistant", release.selector)
    sample = Service(kubectl, "assistant", host="")
    sample.until_condition("Progressing", "False", "PodsRefused")
    with subprocess.Popen([kubectl.program, *watch], stdout=subprocess.PIPE, text=True) as shown:
        guard = threading.Timer(30, shown.kill)
        guard.start()
        assert shown.stdout is not None
        rows = (line.split() for line in shown.stdout)
        head = next(rows)
        row = next(row for row in rows if kubectl.namespace in row or "-A" not in watch)
        guard.cancel()
        shown.kill()
    assert "READY" in head
    assert "assistant" in row


def test_the_operator_may_do_its_work_and_no_more(release: Release, kubectl: Kubectl) -> None:
    operator, here = account(release), kubectl.namespace

    def can(verb: str, resource: str, group: str = "") -> bool:
        return may(kubectl, operator, verb, resource, group=group, namespace=here)

    assert can("list", "sloservices", GROUP)
    assert can("patch", "sloservices/status", GROUP)
    assert can("create", "deployments", "apps")
    for verb in ("get", "list", "watch", "create"):
        assert not can(verb, "secrets"), f"it may {verb} Secrets"
    for verb in ("create", "update", "patch", "delete"):
        assert not can(verb, "sloservices", GROUP), f"it may {verb} services"
    assert not can("update", "sloservices/scale", GROUP)
    assert not can("create", "pods")
    assert not can("create", "pods/exec")
    assert not may(kubectl, operator, "create", "clusterrolebindings",
                   group="rbac.authorization.k8s.io")  # fmt: skip


def test_view_edit_and_admin_cover_services(release: Release, kubectl: Kubectl) -> None:
    for role in ("view", "edit", "admin"):
        kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er")

    def can(role: str, verb: str, resource: str = "sloservices") -> bool:
        return may(kubectl, f"{role}er", verb, resource, group=GROUP, namespace=kubectl.namespace)

    until(lambda: can("view", "list"), "the role view knows services")
    assert not can("view", "patch")
    assert not can("view", "patch", "sloservices/scale")
    for role in ("edit", "admin"):
        until(partial(can, role, "create"), f"the role {role} knows services")
        assert can(role, "list")
        assert can(role, "delete")
        assert can(role, "patch", "sloservices/scale")
        assert not can(role, "patch", "sloservices/status"), "status is the operator's"


def test_a_second_look_finds_no_difference(
    release: Release, service: Service, kubectl: Kubectl
) -> None:
    service.ready()
    text = json.dumps(service.manifest())
    assert kubectl("diff", "-f", "-", text=text) == ""
    server_side = ("--server-side", "--force-conflicts", "--field-manager=flux")
    for words in ((), server_side):
        said = kubectl("apply", *words, "--dry-run=server", "-o", "json", "-f", "-", text=text)
        applied, now = json.loads(said), service.object()
        assert applied["spec"] == now["spec"]
        assert applied["metadata"]["generation"] == now["metadata"]["generation"]
    crd = json.loads(kubectl("get", "crd", "sloservices.sloserve.io", "-o", "json"))
    owned = crd["metadata"]["labels"]["app.kubernetes.io/instance"] == release.name
    made = [
        obj
        for obj in yaml.safe_load_all(release.helm("get", "manifest", release.name))
        if obj and (owned or obj["kind"] != "CustomResourceDefinition")  # two installed at once
    ]
    text = yaml.safe_dump_all(made)
    assert release.kubectl("diff", "-f", "-", text=text) == "", "somebody changes the release"


@dataclass(frozen=True, slots=True)
class Within:
    """A release that looks at one namespace, and another namespace that it leaves alone."""

    release: Release
    watched: Kubectl
    other: Kubectl


@pytest.fixture
def within(release: Release, kubectl: Kubectl, restricted: MakeNamespace) -> Iterator[Within]:
    """The chart with `watch.namespaces`, for this story only."""
    home = restricted("operator")
    inner = replace(release, name="within", kubectl=home)
    alone = nullcontext() if release.selector else release.away()
    with alone:
        words = ("--set", f"watch.namespaces={{{kubectl.namespace}}}")
        inner.install(*words, "--set", "rbac.aggregate=false")
        yield Within(inner, kubectl, restricted("other"))
        inner.helm("uninstall", inner.name, "--wait")


def test_with_namespaces_it_serves_there_only_and_has_no_right_on_the_cluster(
    within: Within, cluster: Kubectl, host: str
) -> None:
    labels = dict([within.release.selector.split("=")])
    outside = Service(within.other, "assistant", host=host, labels=labels)
    outside.apply()
    inside = Service(within.watched, "assistant", host=host, labels=labels).ready()
    assert inside.complete().status_code == 200
    assert outside.status() == {}
    assert outside.children() == []

    operator = account(within.release)
    assert may(cluster, operator, "list", "pods", namespace=within.watched.namespace)
    assert not may(cluster, operator, "list", "pods", namespace=within.other.namespace)
    for resource, group in (
        ("sloservices", GROUP), ("pods", ""), ("namespaces", ""),
        ("customresourcedefinitions", "apiextensions.k8s.io"),
    ):  # fmt: skip
        assert not may(cluster, operator, "list", resource, group=group), resource
    bound = [b for b in cluster.list("clusterrolebindings") if is_for(operator, b)]
    assert bound == []


def is_for(user: str, binding: Obj) -> bool:
    """Whether a binding names a ServiceAccount."""
    subjects = binding.get("subjects") or ()
    named = [f"system:serviceaccount:{s.get('namespace')}:{s['name']}" for s in subjects]
    return user in named
