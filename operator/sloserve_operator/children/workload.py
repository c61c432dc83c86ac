"""
A Deployment whose pods roll for their own spec only.

The template that was applied is kept in an annotation, with a hash of what it was made from.
While that hash stays, a newer operator goes on with the old template: engines are not restarted
because the operator was upgraded.
"""

import hashlib
import json
from collections.abc import Mapping

from sloserve.slo import ModelSpec, ServiceSpec, service_to_dict
from sloserve_operator import names
from sloserve_operator.api import Obj, annotation_of
from sloserve_operator.children.subject import Subject


def digest(value: object) -> str:
    """A short hash of JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def declared(spec: ServiceSpec) -> Obj:
    """
    The spec without what is at its default.

    So a field that a later version adds, or a default that it writes out, changes no hash.
    """
    plain = ServiceSpec(
        name=spec.name,
        model=ModelSpec(source="", served_name=spec.name),
        classes=spec.classes,
        default_class=spec.default_class,
    )
    body, defaults = (service_to_dict(s)["spec"] for s in (spec, plain))
    beyond = _beyond(body, defaults)
    assert isinstance(beyond, dict)
    return beyond


def _beyond(value: object, default: object) -> object:
    if not isinstance(value, Mapping) or not isinstance(default, Mapping):
        return value
    kept = {name: _beyond(inner, default.get(name)) for name, inner in value.items()}
    return {
        name: inner
        for name, inner in kept.items()
        if not (name in default and (inner == default[name] or inner == {}))
    }


def workload(
    subject: Subject,
    part: str,
    *,
    template: Obj,
    declared_hash: str,
    replicas: int,
    strategy: Obj,
    progress_deadline_s: int,
    min_ready_s: int = 0,
) -> Obj:
    """
    The Deployment of one part; `declared_hash` is of what `template` was made from.

    The hash is in the template too: most of what a process reads at its start stands in the
    mounted configuration, whose change alone would roll nothing.
    """
    meta = template["metadata"]
    annotations = {**(meta.get("annotations") or {}), names.DECLARED: declared_hash}
    template = {**template, "metadata": {**meta, "annotations": annotations}}
    kept = json.dumps(template, sort_keys=True, separators=(",", ":"))
    body = {
        "replicas": replicas,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": progress_deadline_s,
        "selector": {"matchLabels": names.selector(subject.spec.name, part)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": strategy},
        "template": template,
    }
    if min_ready_s:  # a 0 would be missing in what the API server gives back
        body["minReadySeconds"] = min_ready_s
    child = subject.child("Deployment", subject.named(part), {"spec": body}, part=part)
    child["metadata"]["annotations"] = {names.DECLARED: declared_hash, names.TEMPLATE: kept}
    return child


def upgraded(wanted: Obj, live: Obj | None) -> bool:
    """Whether only the operator's own rendering differs from what runs."""
    if live is None or annotation_of(live, names.DECLARED) != annotation_of(wanted, names.DECLARED):
        return False
    return annotation_of(live, names.TEMPLATE) not in (None, annotation_of(wanted, names.TEMPLATE))


def kept(wanted: Obj, live: Obj) -> Obj:
    """`wanted` with the template that runs: the same pods go on."""
    text = annotation_of(live, names.TEMPLATE)
    assert text is not None
    meta = wanted["metadata"]
    annotations = {**meta["annotations"], names.TEMPLATE: text}
    return {
        **wanted,
        "metadata": {**meta, "annotations": annotations},
        "spec": {**wanted["spec"], "template": json.loads(text)},
    }
