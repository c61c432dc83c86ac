"""What pods of both parts share: restricted Pod Security, spread, drain, places to write."""

import math
from collections.abc import Mapping, Sequence

from sloserve.slo.cluster import ImageSpec, PodSpec
from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.children.subject import Subject
from sloserve_operator.overlay import lay_over
from sloserve_operator.quantity import resources

PRE_STOP_S = 10
"""Gateways and load balancers notice in this time that a pod goes away."""
GRACE_S = 20
"""Beyond the drain's timeout: the preStop wait, and as much again to say goodbye."""
LOST_NODE_S = 30
CONFIG = "/etc/sloserve"
HOME = "/home/sloserve"


def grace_s(drain_timeout_s: float) -> int:
    """terminationGracePeriodSeconds for a drain of so many seconds."""
    return math.ceil(drain_timeout_s) + GRACE_S


def container(name: str, *, image: str, policy: str, args: Sequence[str]) -> Obj:
    """The main container, as the restricted Pod Security standard wants it."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": policy,
        "command": ["sloserve"],
        "args": list(args),
        "env": [
            {
                "name": "POD_NAME",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
            },
            {"name": "SLOSERVE_LOG_FORMAT", "value": "json"},
            {"name": "HOME", "value": HOME},
            {"name": "USER", "value": "sloserve"},
        ],
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "home", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def probe(path: str, port: str, *, period_s: int, failures: int, timeout_s: int = 2) -> Obj:
    """An HTTP probe, every field written out: what is left to defaults can't be compared."""
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "successThreshold": 1,
        "timeoutSeconds": timeout_s,
    }


def template(
    subject: Subject, part: str, *, main: Obj, volumes: Sequence[Obj], pod: PodSpec
) -> Obj:
    """The pod template of one part, with the overlay of the spec on top. Raises BadInput."""
    spec, where = subject.spec, "engine" if part == names.REPLICA else "gateway"
    if amounts := resources(pod.resources, field=f"spec.{where}.resources"):
        main = {**main, "resources": amounts}
    selector = names.selector(spec.name, part)
    body: Obj = {
        "serviceAccountName": subject.named(part),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s(spec.drain_timeout_s),
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{taint}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": LOST_NODE_S,
            }
            for taint in ("not-ready", "unreachable")
        ],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector},
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
        "affinity": {"podAntiAffinity": _apart_by_zone(selector)},
        "containers": [main],
        "volumes": [
            {"name": "config", "configMap": {"name": names.config(spec.name)}},
            {"name": "home", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            *volumes,
        ],
    }
    secrets = pod.image.pull_secrets or subject.settings.images.pull_secrets
    if secrets:
        body["imagePullSecrets"] = [{"name": name} for name in secrets]
    whole = {"metadata": {"labels": names.labels(spec.name, part)}, "spec": body}
    made = lay_over(whole, pod.pod_template, selector=selector, field=f"spec.{where}.podTemplate")
    settings = subject.settings
    defaults = settings.replica_requests if part == names.REPLICA else settings.gateway_requests
    _reserve(made, part, defaults)
    return made


def _reserve(template: Obj, part: str, defaults: Mapping[str, str]) -> None:
    """
    Requests for what nobody said anything about: a pod without any is the first to starve.

    A limit stands for a request of the same amount, and a pod may declare resources as a whole.
    """
    if template["spec"].get("resources"):
        return
    template["spec"]["containers"] = [
        _reserving(container, defaults)
        if isinstance(container, dict) and container.get("name") == part
        else container
        for container in template["spec"]["containers"]
    ]


def _reserving(container: Obj, defaults: Mapping[str, str]) -> Obj:
    declared = container.get("resources") or {}
    told = [declared.get(kind) or {} for kind in ("requests", "limits")]
    missing = {n: amount for n, amount in defaults.items() if not any(n in part for part in told)}
    if not missing:
        return container
    return {**container, "resources": {**declared, "requests": {**told[0], **missing}}}


def _apart_by_zone(selector: Obj) -> Obj:
    """
    A wish for other zones. As a second spread constraint it would undo the first wherever nodes
    have no zone: the scheduler leaves a node out of the count that lacks one of the labels.
    """
    term = {
        "topologyKey": "topology.kubernetes.io/zone",
        "labelSelector": {"matchLabels": selector},
    }
    wish = {"weight": 100, "podAffinityTerm": term}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}


def image_of(image: ImageSpec, *, default: str, policy: str) -> tuple[str, str]:
    """(reference, pull policy) of the spec's image; what it leaves out is the operator's."""
    repository, tag = _parts(default)
    if image.repository is not None:
        repository, tag = image.repository, ""
    if image.tag is not None:
        tag = f":{image.tag}"
    return f"{repository}{tag}", image.pull_policy or policy


def _parts(reference: str) -> tuple[str, str]:
    """Repository and the rest (`:tag`, `@digest` or nothing) of an image reference."""
    repository, at, digest = reference.partition("@")
    if at:
        return repository, f"@{digest}"
    head, slash, last = reference.rpartition("/")
    name, colon, tag = last.partition(":")
    return f"{head}{slash}{name}", f"{colon}{tag}"
