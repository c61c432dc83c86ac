"""
Strict JSON schemas of the kinds that the chart renders, for kubeconform without a network.

kubectl get --raw /openapi/v2 | python tests/chart/schemas/generate.py
"""

import json
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "Deployment": "apps/v1",
    "ConfigMap": "v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
}
KEPT = ("type", "format", "required", "enum", "$ref", "items", "properties", "additionalProperties")
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def strict(node: Any) -> Any:
    """The node without its prose; an object with declared fields takes no others."""
    slim = {key: node[key] for key in KEPT if key in node}
    if "properties" in slim:
        slim["properties"] = {name: strict(inner) for name, inner in slim["properties"].items()}
        slim.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(slim.get(key), dict):
            slim[key] = strict(slim[key])
    return slim


def references(node: Any) -> set[str]:
    """Names of the definitions that a node points at."""
    if isinstance(node, dict):
        own = {node["$ref"].rpartition("/")[2]} if "$ref" in node else set()
        return own.union(*(references(inner) for inner in node.values()))
    return set()


def schema_of(name: str, definitions: Any) -> Any:
    """One definition with everything that it needs."""
    needed, pending = {name: strict(definitions[name])}, [name]
    while pending:
        for other in references(needed[pending.pop()]) - needed.keys():
            needed[other] = strict(definitions[other])
            pending.append(other)
    if INT_OR_STRING in needed:
        needed[INT_OR_STRING] = {"type": ["integer", "string"]}
    if QUANTITY in needed:
        needed[QUANTITY] = {"type": ["number", "string"]}
    return needed.pop(name) | {"definitions": needed}


def main() -> None:
    """Write one file for each kind, named as kubeconform asks for it."""
    definitions = json.load(sys.stdin)["definitions"]
    for kind, api_version in KINDS.items():
        group, _, version = api_version.rpartition("/")
        wanted = {"group": group, "kind": kind, "version": version}
        (name,) = (
            name
            for name, node in definitions.items()
            if wanted in node.get("x-kubernetes-group-version-kind", ())
        )
        suffix = "-".join(part for part in (group.partition(".")[0], version) if part)
        path = Path(__file__).parent / f"{kind.lower()}-{suffix}.json"
        path.write_text(json.dumps(schema_of(name, definitions), sort_keys=True, indent=1) + "\n")


if __name__ == "__main__":
    main()
