"""The operator may do what it does, and nothing else."""

from typing import Any

import pytest

Obj = dict[str, Any]
Right = tuple[str, str, str]

READ = {"get", "list", "watch"}
OWN = READ | {"create", "patch", "delete"}
DOES = {
    ("sloserve.io", "sloservices"): READ,
    ("sloserve.io", "sloservices/status"): {"patch"},
    ("", "configmaps"): OWN,
    ("", "services"): OWN,
    ("", "serviceaccounts"): OWN,
    ("apps", "deployments"): OWN,
    ("policy", "poddisruptionbudgets"): OWN,
    ("networking.k8s.io", "networkpolicies"): OWN,
    ("monitoring.coreos.com", "podmonitors"): OWN,
    ("monitoring.coreos.com", "prometheusrules"): OWN,
    ("", "pods"): READ | {"patch"},  # deletion costs, and a nudge to read the new configuration
    ("", "events"): {"list", "create", "patch"},  # why a pod is stuck; what was decided
    ("", "persistentvolumeclaims"): {"get"},  # whether a cache can be shared
}
KINDS = ("apiextensions.k8s.io", "customresourcedefinitions")


def rights(role: Obj) -> dict[tuple[str, str], set[str]]:
    """What a role allows on everything of a kind."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def of_kind(objects: list[Obj], *kinds: str) -> list[Obj]:
    return [obj for obj in objects if obj["kind"] in kinds]


def operator_roles(objects: list[Obj]) -> list[Obj]:
    roles = of_kind(objects, "Role", "ClusterRole")
    return [r for r in roles if not r["metadata"]["name"].endswith(("-lease", ":view", ":edit"))]


def test_cluster_wide_it_may_do_what_it_does_everywhere(helm: Any) -> None:
    (role,) = operator_roles(helm.objects())
    assert role["kind"] == "ClusterRole"
    assert rights(role) == DOES | {KINDS: {"list", "watch"}}


def test_with_namespaces_it_has_no_right_outside_of_them(helm: Any, variants: Any) -> None:
    objects = helm.objects(variants["namespaced"])
    assert of_kind(objects, "ClusterRole", "ClusterRoleBinding") == []
    roles = operator_roles(objects)
    assert [r["metadata"]["namespace"] for r in roles] == ["team-a", "team-b"]
    assert [rights(r) for r in roles] == [DOES, DOES]
    bound = of_kind(objects, "RoleBinding")
    assert {b["metadata"]["namespace"] for b in bound} == {"team-a", "team-b", "sloserve-system"}


def test_it_reads_no_secrets_and_has_no_wildcards(objects: list[Obj]) -> None:
    for role in of_kind(objects, "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "secrets" not in rule["resources"]
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


def test_the_lease_is_the_one_that_the_operator_is_told(objects: list[Obj]) -> None:
    (role,) = [r for r in of_kind(objects, "Role") if r["metadata"]["name"].endswith("-lease")]
    (deployment,) = of_kind(objects, "Deployment")
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    (lease,) = [e["value"] for e in env if e["name"] == "SLOSERVE_LEASE"]
    create, use = role["rules"]
    assert role["metadata"]["namespace"] == "sloserve-system"
    assert (create["verbs"], create.get("resourceNames")) == (["create"], None)
    assert (set(use["verbs"]), use["resourceNames"]) == ({"get", "update"}, [lease])


def test_every_binding_binds_the_operators_account(objects: list[Obj]) -> None:
    (deployment,) = of_kind(objects, "Deployment")
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    assert account in [a["metadata"]["name"] for a in of_kind(objects, "ServiceAccount")]
    roles = {(r["kind"], r["metadata"]["name"]) for r in of_kind(objects, "Role", "ClusterRole")}
    bindings = of_kind(objects, "RoleBinding", "ClusterRoleBinding")
    assert len(bindings) >= 2
    for binding in bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": "sloserve-system"}
        ]
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in roles


def test_people_with_view_see_services_and_people_with_edit_change_them(helm: Any) -> None:
    roles = {r["metadata"]["name"]: r for r in of_kind(helm.objects(), "ClusterRole")}
    view, edit = (roles[f"sloserve-system:sloserve:{name}"] for name in ("view", "edit"))
    to = "rbac.authorization.k8s.io/aggregate-to-"
    assert {n for n in view["metadata"]["labels"] if n.startswith(to)} == {
        f"{to}view",
        f"{to}edit",
        f"{to}admin",
    }
    assert f"{to}view" not in edit["metadata"]["labels"]
    seen = {verb for verbs in rights(view).values() for verb in verbs}
    assert seen == READ
    assert rights(edit)["sloserve.io", "sloservices/scale"] == {"update", "patch"}
    assert ("sloserve.io", "sloservices/status") not in rights(edit)


def test_rights_are_for_the_kinds_that_the_operator_handles() -> None:
    api = pytest.importorskip("sloserve_operator.api", reason="the operator is not there")
    children = {(kind.group, kind.plural) for kind in api.CHILD_KINDS.values()}
    assert {what for what, verbs in DOES.items() if verbs == OWN} == children
    others = {(kind.group, kind.plural) for kind in (api.POD, api.EVENT, api.CLAIM, api.SERVICE)}
    assert {*DOES} == children | others | {("sloserve.io", "sloservices/status")}
