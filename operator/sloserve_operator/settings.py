"""How this operator runs: read once from the environment and flags, passed as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sloserve.errors import BadInput
from sloserve.rules.settings import RUNBOOK_URL
from sloserve_operator.quantity import canonical


@dataclass(frozen=True, slots=True)
class Images:
    """Images of services that name none; `sim` and gateways need no torch."""

    engine_cpu: str = "localhost/sloserve-engine:dev"
    engine_cuda: str = "localhost/sloserve-engine-cuda:dev"
    gateway: str = "localhost/sloserve-gateway:dev"
    """Runs gateways, and replicas of `builtin://sim`."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Everything an operator is told."""

    namespace: str = "sloserve-system"
    """Where it runs: its Lease is there, and gateways let it in from there."""
    watched: tuple[str, ...] = ()
    """Namespaces whose services it runs; empty: all (needs cluster-wide rights)."""
    selector: str = ""
    """Label selector of the services it runs, for several operators in one cluster."""
    identity: str = "sloserve-operator"
    """Who holds the Lease: the pod's uid. Two replicas must never share it."""
    lease: str = "sloserve-operator"
    listen: str = ":8081"
    """Where /livez, /readyz and /metrics are."""
    images: Images = field(default_factory=Images)
    fs_group: int | None = 10001
    """Group that may write to a cache claim; None where the platform assigns groups (OpenShift)."""
    replica_requests: Mapping[str, str] = field(
        default_factory=lambda: {"cpu": "200m", "memory": "256Mi"}
    )
    """
    What a replica reserves of each resource of which its spec says nothing. Small: no model is
    known here. It keeps the pod from being the first to starve or to be evicted.
    """
    gateway_requests: Mapping[str, str] = field(
        default_factory=lambda: {"cpu": "100m", "memory": "128Mi"}
    )
    """And a gateway. Neither part has limits that nobody asked for."""
    network_policies: bool = True
    prometheus_labels: Mapping[str, str] = field(
        default_factory=lambda: {"app.kubernetes.io/name": "prometheus"}
    )
    """Labels of the Prometheus pods that may scrape, in any namespace."""
    monitor_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the Prometheus operator selects monitors by (`release: prometheus`)."""
    runbook_url: str = RUNBOOK_URL
    """Where the runbook can be read; alerts link to it."""
    num_workers: int = 8
    resync_s: float = 300.0
    """Between two complete looks at the cluster, which heal whatever a watch has lost."""
    poll_s: float = 10.0
    """Between two looks at a gateway."""
    max_rollouts: int = 5
    """Services at most that an operator upgrade restarts at the same time."""


ENVIRONMENT = {
    "SLOSERVE_NAMESPACE": "namespace",
    "SLOSERVE_WATCH_SELECTOR": "selector",
    "SLOSERVE_IDENTITY": "identity",
    "SLOSERVE_LEASE": "lease",
    "SLOSERVE_LISTEN": "listen",
    "SLOSERVE_RUNBOOK_URL": "runbook_url",
}
IMAGES = {
    "SLOSERVE_ENGINE_CPU_IMAGE": "engine_cpu",
    "SLOSERVE_ENGINE_CUDA_IMAGE": "engine_cuda",
    "SLOSERVE_GATEWAY_IMAGE": "gateway",
    "SLOSERVE_IMAGE_PULL_POLICY": "pull_policy",
}


def from_environment(env: Mapping[str, str]) -> OperatorSettings:
    """The settings in environment variables; what is unset or empty keeps its default."""
    given: dict[str, object] = {
        name: env[variable] for variable, name in ENVIRONMENT.items() if env.get(variable)
    }
    images = {name: env[variable] for variable, name in IMAGES.items() if env.get(variable)}
    secrets = _words(env.get("SLOSERVE_IMAGE_PULL_SECRETS", ""))
    given["images"] = Images(**images, pull_secrets=secrets)
    given["watched"] = _words(env.get("SLOSERVE_WATCH_NAMESPACES", ""))
    if "SLOSERVE_FS_GROUP" in env:
        text = env["SLOSERVE_FS_GROUP"]
        if text and not text.isdigit():
            raise BadInput(
                f"is {text!r}; must be a group number or empty", field="SLOSERVE_FS_GROUP"
            )
        given["fs_group"] = int(text) if text else None
    if env.get("SLOSERVE_NETWORK_POLICIES"):
        given["network_policies"] = _flag("SLOSERVE_NETWORK_POLICIES", env)
    for variable, name in (
        ("SLOSERVE_PROMETHEUS_LABELS", "prometheus_labels"),
        ("SLOSERVE_MONITOR_LABELS", "monitor_labels"),
    ):
        if env.get(variable):
            given[name] = _pairs(variable, env[variable])
    for variable, name in (
        ("SLOSERVE_REPLICA_REQUESTS", "replica_requests"),
        ("SLOSERVE_GATEWAY_REQUESTS", "gateway_requests"),
    ):
        if variable in env:  # empty: none
            amounts = _pairs(variable, env[variable])
            given[name] = {n: canonical(a, field=variable) for n, a in amounts.items()}
    return OperatorSettings(**given)  # type: ignore[arg-type]  # names are those of the fields


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _flag(variable: str, env: Mapping[str, str]) -> bool:
    value = env[variable].lower()
    if value not in ("true", "false"):
        raise BadInput(f"is {env[variable]!r}; must be true or false", field=variable)
    return value == "true"


def _pairs(variable: str, text: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in _words(text)]
    if not all(name and equals for name, equals, _ in pairs):
        raise BadInput(f"is {text!r}; must be NAME=VALUE, with commas between", field=variable)
    return {name: value for name, _, value in pairs}
