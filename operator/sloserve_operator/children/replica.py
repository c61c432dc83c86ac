"""The replicas: one engine process and its HTTP server per pod."""

import math

from sloserve_operator import names
from sloserve_operator.api import Obj
from sloserve_operator.children import pod, sources
from sloserve_operator.children.subject import Subject
from sloserve_operator.children.workload import declared, digest, workload
from sloserve_operator.quantity import resources

GPU = "nvidia.com/gpu"
STARTUP_PERIOD_S = 2
NAMES_CACHED_S = 30
"""So old may the list of replicas be that cluster DNS gives the gateways."""
MIN_READY_S = NAMES_CACHED_S - pod.PRE_STOP_S
"""
A rollout takes an old replica away when a new one has been ready for so long. With the time that
the old one still serves, every gateway has found the new one by then, however fast it loaded.
"""


def replica_deployment(subject: Subject) -> Obj:
    """The Deployment of the replicas. Raises BadInput for a podTemplate that can't be."""
    spec = subject.spec
    rollout = spec.engine.rollout
    return workload(
        subject,
        names.REPLICA,
        template=_template(subject),
        declared_hash=digest(_declared(subject)),
        replicas=subject.num_replicas,
        strategy={"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable},
        progress_deadline_s=math.ceil(spec.model.load_timeout_s) + MIN_READY_S + 1,
        min_ready_s=MIN_READY_S,
    )


def _declared(subject: Subject) -> Obj:
    """What a replica reads at its start: model, engine, the time to drain. Not the classes."""
    body = declared(subject.spec)
    parts: Obj = {name: body[name] for name in ("model", "engine", "drain") if name in body}
    engine = dict(parts.pop("engine", {}))
    engine.pop("rollout", None)
    return parts | ({"engine": engine} if engine else {})


def _template(subject: Subject) -> Obj:
    spec = subject.spec
    found = sources.mounts(spec)
    reference, policy = _image(subject)
    args = ["replica", "--config", f"{pod.CONFIG}/{names.CONFIG_FILE}"]
    args += ["--listen", f":{names.REPLICA_PORT}", "--name", "$(POD_NAME)"]
    main = pod.container(names.REPLICA, image=reference, policy=policy, args=args)
    main["env"] += found.env
    main["volumeMounts"] += found.mounts
    main["ports"] = [{"name": "http", "containerPort": names.REPLICA_PORT, "protocol": "TCP"}]
    num_tries = max(1, math.ceil(spec.model.load_timeout_s / STARTUP_PERIOD_S))
    main["startupProbe"] = pod.probe(
        "/ready", "http", period_s=STARTUP_PERIOD_S, failures=num_tries
    )
    main["readinessProbe"] = pod.probe("/ready", "http", period_s=2, failures=2)
    main["livenessProbe"] = pod.probe("/health", "http", period_s=10, failures=3, timeout_s=5)
    volumes = list(found.volumes)
    if spec.engine.tensor_parallel_size > 1:  # the GPUs of a pod talk through shared memory
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        main["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    if (gpus := _gpus(subject)) is not None:
        main["resources"] = gpus
    declared = spec.engine.pod
    made = pod.template(subject, names.REPLICA, main=main, volumes=volumes, pod=declared)
    group = subject.settings.fs_group
    context = made["spec"]["securityContext"]
    if found.shared_claim and group is not None and "fsGroup" not in context:
        context |= {"fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch"}
    if gpus is not None:
        _ask_for_gpus(made, gpus)
    return made


def _gpus(subject: Subject) -> Obj | None:
    """GPUs to ask for when the engine wants them and the spec names none of any kind."""
    engine = subject.spec.engine
    if engine.device != "cuda" or sources.simulated(subject.spec):
        return None
    asked = resources(engine.pod.resources, field="spec.engine.resources")
    limits = asked.get("limits") or {}
    assert isinstance(limits, dict)
    if asked.get("claims") or any("gpu" in name or "/mig-" in name for name in limits):
        return None
    return {"limits": {GPU: str(engine.tensor_parallel_size)}}


def _ask_for_gpus(template: Obj, gpus: Obj) -> None:
    for container in template["spec"]["containers"]:
        if container["name"] == names.REPLICA:
            asked = container.setdefault("resources", {})
            asked["limits"] = {**gpus["limits"], **(asked.get("limits") or {})}


def _image(subject: Subject) -> tuple[str, str]:
    spec, images = subject.spec, subject.settings.images
    default = images.engine_cuda if spec.engine.device == "cuda" else images.engine_cpu
    if sources.simulated(spec):
        default = images.gateway
    return pod.image_of(spec.engine.pod.image, default=default, policy=images.pull_policy)
