"""The parts of a service that only Kubernetes uses: parsed, checked and kept everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Auto(StrEnum):
    """Whether an optional object is made; `Auto`: when the cluster knows its kind."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


@dataclass(frozen=True, slots=True)
class SecretKey:
    """One key of a Secret in the service's namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Where downloaded models are kept; at most one of the two is set."""

    claim_name: str | None = None
    """A PersistentVolumeClaim shared by the replicas."""
    size_limit: str | None = None
    """Size of an emptyDir per replica (`40Gi`); it dies with its pod."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """A container image; what is None comes from the operator's own settings."""

    repository: str | None = None
    tag: str | None = None
    pull_policy: str | None = None
    """`Always`, `IfNotPresent` or `Never`."""
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets."""


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How replicas are replaced when model, engine or image change."""

    max_surge: int | str = 1
    """Extra replicas during a rollout: a count, or a share of the replicas (`25%`)."""
    max_unavailable: int | str = 0
    """Replicas that may be missing: a count or a share. Not 0 together with `max_surge`."""
    on_operator_upgrade: bool = False
    """Whether an operator upgrade may restart engines; default no: loading models is dear."""


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What both Deployments take over as it is."""

    image: ImageSpec = field(default_factory=ImageSpec)
    resources: Mapping[str, object] = field(default_factory=dict)
    """Kubernetes resource requirements: `limits`, `requests`, `claims`."""
    pod_template: Mapping[str, object] = field(default_factory=dict)
    """Overlay over the pod template; opaque here, checked by a dry run in the cluster."""


@dataclass(frozen=True, slots=True)
class AutoscalingSpec:
    """Scaling by the planner's arithmetic; when it is there, `replicas` is ignored."""

    max_replicas: int
    min_replicas: int = 1
    """0 lets an idle service sleep; gateways hold requests until a replica is up."""
    target_attainment: float = 0.97
    """Share of requests (0..1) that must keep their promise."""
    scale_down_delay_s: float = 300.0
    """Seconds for which fewer replicas must have sufficed."""


@dataclass(frozen=True, slots=True)
class ObservabilitySpec:
    """What the operator creates for Prometheus and Grafana."""

    monitors: Auto = Auto.AUTO
    rules: Auto = Auto.AUTO
    dashboard: Auto = Auto.AUTO
    period_s: float = 7 * 86400.0
    """Seconds over which the error budget is counted."""
