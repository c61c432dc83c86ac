"""
Who may talk to whom: the table of flows as NetworkPolicies.

    clients    -> gateway   its public port
    operator   -> gateway   its internal port
    gateway    -> replica, DNS
    Prometheus -> gateway's internal port, replica
    replica    -> DNS, and the model hub when it downloads
    both       -> the collector of traces that their environment names
"""

from collections.abc import Sequence

from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.children import sources
from sloserve_operator.children.subject import Subject

DNS_PORT = 53


def policies(subject: Subject, *, replica_template: Obj, gateway_template: Obj) -> list[Obj]:
    """The policies of both parts; the ports of hub and collector depend on the environment."""
    prometheus = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": dict(subject.settings.prometheus_labels)},
    }
    operator = {
        "namespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": subject.settings.namespace}
        },
        "podSelector": {"matchLabels": {names.COMPONENT: "operator"}},
    }
    gateways = _peer(subject, names.GATEWAY)
    replicas = _peer(subject, names.REPLICA)
    outside = [_dns()]
    if sources.downloads(subject.spec):
        outside.append({"ports": _ports(sources.hub_ports(replica_template))})
    outside += _to_collector(replica_template)
    return [
        _policy(
            subject,
            names.REPLICA,
            ingress=[_from([gateways, prometheus], names.REPLICA_PORT)],
            egress=outside,
        ),
        _policy(
            subject,
            names.GATEWAY,
            ingress=[
                {"ports": _ports([names.GATEWAY_PORT])},
                _from([operator, prometheus], names.INTERNAL_PORT),
            ],
            egress=[
                _dns(),
                {"to": [replicas], "ports": _ports([names.REPLICA_PORT])},
                *_to_collector(gateway_template),
            ],
        ),
    ]


def _policy(subject: Subject, part: str, *, ingress: Sequence[Obj], egress: Sequence[Obj]) -> Obj:
    body = {
        "podSelector": {"matchLabels": names.selector(subject.spec.name, part)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": list(ingress),
        "egress": list(egress),
    }
    return subject.child("NetworkPolicy", subject.named(part), {"spec": body}, part=part)


def _peer(subject: Subject, part: str) -> Obj:
    return {"podSelector": {"matchLabels": names.selector(subject.spec.name, part)}}


def _from(peers: Sequence[Obj], port: int) -> Obj:
    return {"from": list(peers), "ports": _ports([port])}


def _ports(ports: Sequence[int]) -> list[Obj]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def _to_collector(template: Obj) -> list[Obj]:
    ports = sources.collector_ports(template)
    return [{"ports": _ports(ports)}] if ports else []


def _dns() -> Obj:
    return {"ports": [{"port": DNS_PORT, "protocol": kind} for kind in ("UDP", "TCP")]}
