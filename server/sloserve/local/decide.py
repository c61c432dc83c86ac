"""What `sloserve up` does about a manifest, or an edit to it: pure functions."""

from dataclasses import dataclass, replace

from sloserve.slo import ServiceSpec


@dataclass(frozen=True, slots=True)
class Edit:
    """What a changed manifest means for a service that runs."""

    spec: ServiceSpec
    """The spec in force from now on."""
    applied: tuple[str, ...] = ()
    """What changed, in words."""
    needs_restart: tuple[str, ...] = ()
    """Fields that changed and stay as they were until `sloserve up` is started again."""


def num_replicas(spec: ServiceSpec) -> int:
    """
    Replica processes on this machine, at least one.

    Autoscaling and scaling to zero are Kubernetes' business: here `minReplicas` is the number.
    """
    return max(1, spec.autoscaling.min_replicas if spec.autoscaling else spec.replicas)


def share_out(spec: ServiceSpec, *, num_cores: int, num_parts: int) -> ServiceSpec:
    """
    The spec that each process gets when the machine is shared by `num_parts` replicas.

    threads = cores // parts, at least 1, and the share of memory is divided by the parts. What
    the manifest sets itself (`threads`, `kvCache.size`) stays.
    """
    engine = spec.engine
    return replace(
        spec,
        replicas=num_replicas(spec),
        engine=replace(
            engine,
            threads=engine.threads or max(1, num_cores // num_parts),
            kv_memory_fraction=max(0.01, round(engine.kv_memory_fraction / num_parts, 6)),
        ),
    )


def edit(current: ServiceSpec, wanted: ServiceSpec) -> Edit:
    """
    What changes while the service runs, and what has to wait (both specs as parsed).

    Model and engine are fixed when a process starts; classes, gateway, drain and the number of
    replicas are not. The generation counts up with every edit that changes something.
    """
    fixed = {
        "metadata.name": wanted.name != current.name,
        "spec.model": wanted.model != current.model,
        "spec.engine": wanted.engine != current.engine,
    }
    spec = replace(
        wanted,
        name=current.name,
        model=current.model,
        engine=current.engine,
        generation=current.generation,
    )
    applied = []
    if (spec.classes, spec.default_class) != (current.classes, current.default_class):
        applied.append("classes " + ", ".join(c.name for c in spec.classes))
    before, now = num_replicas(current), num_replicas(spec)
    if now != before:
        applied.append(f"replicas {before} -> {now}")
    if spec.gateway != current.gateway:
        applied.append("gateway")
    if spec.drain_timeout_s != current.drain_timeout_s:
        applied.append("drain")
    if spec != current:
        spec = replace(spec, generation=current.generation + 1)
    return Edit(spec, tuple(applied), tuple(name for name, differs in fixed.items() if differs))
