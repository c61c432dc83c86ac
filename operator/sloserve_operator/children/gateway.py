"""The gateways: what clients talk to."""

from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.children import pod
from sloserve_operator.children.subject import Subject
from sloserve_operator.children.workload import declared, digest, workload

KEYS = "/etc/sloserve-keys"
TLS = "/etc/sloserve-tls"
PROGRESS_DEADLINE_S = 300
STARTUP_PERIOD_S, STARTUP_TRIES = 2, 60
"""A busy node takes its time to start a process; one that stands still is noticed later."""


def gateway_deployment(subject: Subject) -> Obj:
    """The Deployment of the gateways. Raises BadInput for a podTemplate that can't be."""
    return workload(
        subject,
        names.GATEWAY,
        template=_template(subject),
        declared_hash=digest(_declared(subject)),
        replicas=subject.spec.gateway.replicas,
        strategy={"maxSurge": 1, "maxUnavailable": 0},
        progress_deadline_s=PROGRESS_DEADLINE_S,
    )


def _declared(subject: Subject) -> Obj:
    """What a gateway reads at its start only; the rest it takes from the file while it runs."""
    body = declared(subject.spec)
    fixed = ("auth", "tls", "image", "resources", "podTemplate")
    gateway = {n: value for n, value in body.get("gateway", {}).items() if n in fixed}
    return {"gateway": gateway, "drain": body.get("drain", {})}


def _template(subject: Subject) -> Obj:
    spec, images = subject.spec, subject.settings.images
    gateway = spec.gateway
    reference, policy = pod.image_of(
        gateway.pod.image, default=images.gateway, policy=images.pull_policy
    )
    args = ["gateway", "--config", f"{pod.CONFIG}/{names.CONFIG_FILE}"]
    args += ["--listen", f":{names.GATEWAY_PORT}", "--internal", f":{names.INTERNAL_PORT}"]
    args += ["--replicas", f"{subject.named(names.REPLICA)}:{names.REPLICA_PORT}"]
    volumes: list[Obj] = []
    mounts: list[Obj] = []
    if gateway.auth_secret is not None:
        args += ["--keys", f"{KEYS}/keys.yaml"]
        volumes.append({"name": "keys", "secret": {"secretName": gateway.auth_secret}})
        mounts.append({"name": "keys", "mountPath": KEYS, "readOnly": True})
    if gateway.tls_secret is not None:
        args += ["--tls-cert", f"{TLS}/tls.crt", "--tls-key", f"{TLS}/tls.key"]
        volumes.append({"name": "tls", "secret": {"secretName": gateway.tls_secret}})
        mounts.append({"name": "tls", "mountPath": TLS, "readOnly": True})
    main = pod.container(names.GATEWAY, image=reference, policy=policy, args=args)
    main["volumeMounts"] += mounts
    main["ports"] = [
        {"name": "http", "containerPort": names.GATEWAY_PORT, "protocol": "TCP"},
        {"name": "internal", "containerPort": names.INTERNAL_PORT, "protocol": "TCP"},
    ]
    main["startupProbe"] = pod.probe(
        "/health", "internal", period_s=STARTUP_PERIOD_S, failures=STARTUP_TRIES
    )
    main["readinessProbe"] = pod.probe("/ready", "internal", period_s=2, failures=2)
    main["livenessProbe"] = pod.probe("/health", "internal", period_s=10, failures=3, timeout_s=5)
    return pod.template(subject, names.GATEWAY, main=main, volumes=volumes, pod=gateway.pod)
