"""How a model reaches a pod: mounted claims, the cache of downloads, the hub's token."""

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

from sloserve.slo import ServiceSpec
from sloserve.slo.sources import SourceKind, parse_source
from sloserve_operator.api import Obj
from sloserve_operator.quantity import canonical

MODELS = "/models"
CACHE = "/cache"
HUB_PORTS = (80, 443)
_WEB = {"http": 80, "https": 443}
_COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROXIES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True, slots=True)
class Mounts:
    """What a replica's pod needs for its model."""

    volumes: list[Obj]
    mounts: list[Obj]
    env: list[Obj]
    shared_claim: bool
    """Whether a claim is written to by several pods."""


def texts(spec: ServiceSpec) -> list[str]:
    """The sources of the model and its adapters."""
    drafter = spec.engine.speculation.drafter
    drafters = [drafter] if "://" in drafter else []
    return [spec.model.source, *(adapter.source for adapter in spec.model.lora), *drafters]


def claims(spec: ServiceSpec) -> list[str]:
    """Claims that sources name, each once."""
    found = [parse_source(text) for text in texts(spec)]
    names = [s.ref.partition("/")[0] for s in found if s.kind is SourceKind.CLAIM]
    return list(dict.fromkeys(names))


def downloads(spec: ServiceSpec) -> bool:
    """Whether replicas fetch from a hub."""
    return any(parse_source(text).kind is SourceKind.HUB for text in texts(spec))


def simulated(spec: ServiceSpec) -> bool:
    """Whether replicas need no torch."""
    return parse_source(spec.model.source).kind is SourceKind.SIM


def in_pod(spec: ServiceSpec) -> ServiceSpec:
    """The spec as a replica reads it: claims are folders there."""
    model, speculation = spec.model, spec.engine.speculation
    adapters = tuple(replace(adapter, source=_folder(adapter.source)) for adapter in model.lora)
    drafter = speculation.drafter
    if "://" in drafter:
        speculation = replace(speculation, drafter=_folder(drafter))
    return replace(
        spec,
        model=replace(model, source=_folder(model.source), lora=adapters),
        engine=replace(spec.engine, speculation=speculation),
    )


def _folder(text: str) -> str:
    source = parse_source(text)
    if source.kind is not SourceKind.CLAIM:
        return text
    claim, _, path = source.ref.partition("/")
    return f"file://{MODELS}/{claim}/{quote(path.strip('/'))}"


def mounts(spec: ServiceSpec) -> Mounts:
    """Volumes, mounts and environment for the model of `spec`."""
    volumes: list[Obj] = []
    inside: list[Obj] = []
    for number, claim in enumerate(claims(spec)):
        name = f"model-{number}"
        volumes.append(
            {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        )
        inside.append({"name": name, "mountPath": f"{MODELS}/{claim}", "readOnly": True})
    cache = spec.model.cache
    if cache.claim_name is not None:
        volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": cache.claim_name}})
    else:
        limit = cache.size_limit
        size = {} if limit is None else {"sizeLimit": canonical(limit, field="spec.model.cache")}
        volumes.append({"name": "cache", "emptyDir": size})
    inside.append({"name": "cache", "mountPath": CACHE})
    env: list[Obj] = [
        {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
        {"name": "SLOSERVE_CACHE", "value": f"{CACHE}/sloserve"},
    ]
    token = spec.model.token_secret
    if token is not None:
        reference = {"name": token.name, "key": token.key}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return Mounts(volumes, inside, env, shared_claim=cache.claim_name is not None)


def hub_ports(template: Obj) -> list[int]:
    """Ports that a download may need: those of the web, and of a mirror or proxy that is set."""
    named = (_port(url) for url in _urls(template, _PROXIES))
    return sorted({*HUB_PORTS, *(port for port in named if port is not None)})


def collector_ports(template: Obj) -> list[int]:
    """Ports of the collector that traces go to, when the pod's environment names one."""
    ports = {_port(url) or _WEB.get(urlsplit(url).scheme) for url in _urls(template, _COLLECTORS)}
    return sorted(port for port in ports if port is not None)


def _urls(template: Obj, variables: tuple[str, ...]) -> list[str]:
    """The URLs in these environment variables, of every container."""
    found = []
    for container in template["spec"]["containers"]:
        for variable in container.get("env") or ():
            text = str(variable.get("value") or "")
            if str(variable.get("name", "")).upper() in variables and re.match(r"\w+://", text):
                found.append(text)
    return found


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None
