"""Rendered children against the published schemas of Kubernetes: no field is misspelt."""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sloserve.slo import parse_service
from sloserve_operator.api import CHILD_KINDS, Obj, owner_reference
from sloserve_operator.children import render
from sloserve_operator.children.subject import Subject
from sloserve_operator.decide import decide, with_digest
from sloserve_operator.names import GATEWAY, labels
from sloserve_operator.observed import Memory, Now, Observed
from sloserve_operator.reports import parse_report
from sloserve_operator.settings import Images, OperatorSettings

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "chart" / "schemas"
SAMPLES = [*(ROOT / "examples").glob("*.yaml"), *(ROOT / "crds" / "samples" / "valid").glob("*")]

CRD = ROOT / "crds" / "sloservices.sloserve.io.yaml"

jsonschema_rs = pytest.importorskip("jsonschema_rs")
with_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason="tests/chart/schemas, which this compares with, is not there"
)
with_crd = pytest.mark.skipif(not CRD.is_file(), reason=f"crds/{CRD.name} is not there")


def services() -> list[Any]:
    found = [(path.name, yaml.safe_load(path.read_text())) for path in sorted(SAMPLES)]
    return [pytest.param(m, id=name) for name, m in found if m.get("kind") == "SLOService"]


@cache
def checker(kind: str) -> Callable[[Obj], list[str]]:
    """What is wrong with an object of this kind."""
    (path,) = SCHEMAS.glob(f"{kind.lower()}-*.json")
    validator = jsonschema_rs.validator_for(json.loads(path.read_text()))
    return lambda obj: [f"{list(e.instance_path)}: {e.message}" for e in validator.iter_errors(obj)]


def children(manifest: Obj) -> list[Obj]:
    service = copy.deepcopy(manifest)
    service["metadata"] |= {"namespace": "team", "uid": "u", "generation": 3}
    settings = OperatorSettings(images=Images(pull_secrets=("registry",)))
    spec = parse_service(service)
    subject = Subject(spec, owner_reference(service), settings, spec.replicas)
    return [with_digest(child) for child in render(subject)]


@with_schemas
@pytest.mark.parametrize("manifest", services())
def test_every_child_of_every_sample_is_what_kubernetes_knows(manifest: Obj) -> None:
    made = children(manifest)
    assert {child["kind"] for child in made} == {
        k.kind for k in CHILD_KINDS.values() if not k.optional
    }
    wrong = {
        f"{child['kind']}/{child['metadata']['name']}": told
        for child in made
        if (told := checker(child["kind"])(child))
    }
    assert wrong == {}


@with_schemas
def test_a_misspelt_field_would_be_found() -> None:
    (manifest, *_) = services()
    (deployment, *_) = [c for c in children(manifest.values[0]) if c["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    assert checker("Deployment")(deployment)


def unknown(value: object, schema: Obj, at: str = "status") -> list[str]:
    """Fields that a structural schema does not have; server-side apply refuses them."""
    if isinstance(value, list):
        return [told for entry in value for told in unknown(entry, schema["items"], f"{at}[]")]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties") or {}
    found = [f"{at}.{name}" for name in value if name not in known]
    for name in value.keys() & known.keys():
        found += unknown(value[name], known[name], f"{at}.{name}")
    return found


@with_crd
def test_the_crd_has_every_field_of_the_status_that_is_written(
    manifest: Callable[..., Obj], report: Callable[..., Obj], moment: Callable[[float], Now]
) -> None:
    gateway = {"name": "g", "namespace": "team", "uid": "g", "labels": labels("chat", GATEWAY)}
    observed = Observed(
        manifest(),
        pods=({"metadata": gateway, "status": {}},),
        reports={"g": parse_report(report(classes={"fast": (30, 20), "slow": (30, 30)}))},
    )
    decision = decide(observed, settings=OperatorSettings(), memory=Memory(), now=moment(0))
    status = decision.status or {}
    assert {"days", "attainment5m"} <= status["classes"][0].keys()
    schema = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]
    assert unknown(status, schema["openAPIV3Schema"]["properties"]["status"]) == []
    assert unknown({"nothing": 1}, schema["openAPIV3Schema"]["properties"]["status"])
