"""The children that hold no decision: configuration, Services, accounts, disruption budgets."""

import json
from dataclasses import replace

from sloserve.slo import service_to_dict
from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.children import sources
from sloserve_operator.children.subject import Subject


def config_map(subject: Subject) -> Obj:
    """
    The resolved spec as replicas and gateways read it, generation included.

    Without the overlays: what is in a pod's template is no business of the process in it.
    """
    spec = sources.in_pod(subject.spec)
    engine = replace(spec.engine, pod=replace(spec.engine.pod, pod_template={}))
    gateway = replace(spec.gateway, pod=replace(spec.gateway.pod, pod_template={}))
    resolved = service_to_dict(replace(spec, engine=engine, gateway=gateway))
    text = json.dumps(resolved, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    body = {"data": {names.CONFIG_FILE: text}}
    return subject.child("ConfigMap", names.config(subject.spec.name), body)


def replica_service(subject: Subject) -> Obj:
    """Headless: the gateways' list of replicas, from before they are ready until they are gone."""
    body = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": names.selector(subject.spec.name, names.REPLICA),
        "ports": [_port("http", names.REPLICA_PORT, "http")],
        "type": "ClusterIP",
    }
    return subject.child(
        "Service", subject.named(names.REPLICA), {"spec": body}, part=names.REPLICA
    )


def gateway_service(subject: Subject) -> Obj:
    """What clients reach."""
    gateway = subject.spec.gateway
    tls = gateway.tls_secret is not None
    port = (
        _port("https", names.SERVICE_TLS_PORT, "http")
        if tls
        else _port("http", names.SERVICE_PORT, "http")
    )
    body = {
        "type": gateway.service_type,
        "selector": names.selector(subject.spec.name, names.GATEWAY),
        "ports": [port],
    }
    return subject.child(
        "Service", subject.named(names.GATEWAY), {"spec": body}, part=names.GATEWAY
    )


def _port(name: str, port: int, target: str) -> Obj:
    return {"name": name, "port": port, "protocol": "TCP", "targetPort": target}


def service_account(subject: Subject, part: str) -> Obj:
    """An account without a token: no pod of a service talks to the API server."""
    body = {"automountServiceAccountToken": False}
    return subject.child("ServiceAccount", subject.named(part), body, part=part)


def disruption_budget(subject: Subject, part: str) -> Obj:
    """Drains take one pod at a time; a pod that is broken anyway may always go."""
    body = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": names.selector(subject.spec.name, part)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return subject.child("PodDisruptionBudget", subject.named(part), {"spec": body}, part=part)
