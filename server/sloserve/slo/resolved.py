"""A service back as a manifest, every default written out: what replicas and gateways read."""

from collections.abc import Mapping

from sloserve.slo.classes import SloClass, Stage, Ttft
from sloserve.slo.cluster import AutoscalingSpec, PodSpec
from sloserve.slo.duration import format_duration
from sloserve.slo.manifest import API_VERSION, KIND
from sloserve.slo.service import EngineSpec, GatewaySpec, ModelSpec, ServiceSpec

PLAIN_STAGE = "decode"


def service_to_dict(spec: ServiceSpec) -> dict[str, object]:
    """The resolved spec: `parse_service(service_to_dict(spec)) == spec`; values are JSON's."""
    metadata = {
        "name": spec.name,
        "namespace": spec.namespace or None,
        "generation": spec.generation,
    }
    body = {
        "model": _model(spec.model),
        "engine": _engine(spec.engine),
        "sloClasses": [_slo_class(c) for c in spec.classes],
        "defaultClass": spec.default_class,
        "replicas": spec.replicas,
        "autoscaling": _autoscaling(spec.autoscaling),
        "gateway": _gateway(spec.gateway),
        "drain": {"timeout": format_duration(spec.drain_timeout_s)},
        "observability": {
            "monitors": spec.observability.monitors.value,
            "rules": spec.observability.rules.value,
            "dashboard": spec.observability.dashboard.value,
            "period": format_duration(spec.observability.period_s),
        },
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": _given(metadata),
        "spec": _given(body),
    }


def _model(model: ModelSpec) -> dict[str, object]:
    secret = model.token_secret
    return _given(
        {
            "source": model.source,
            "revision": model.revision,
            "servedName": model.served_name,
            "maxModelLen": model.max_model_len,
            "chatTemplate": model.chat_template,
            "toolParser": model.tool_parser,
            "lora": [{"name": a.name, "source": a.source} for a in model.lora],
            "tokenSecretRef": secret and {"name": secret.name, "key": secret.key},
            "cache": _given(
                {"claimName": model.cache.claim_name, "sizeLimit": model.cache.size_limit}
            ),
            "loadTimeout": format_duration(model.load_timeout_s),
        }
    )


def _engine(engine: EngineSpec) -> dict[str, object]:
    return _given(
        {
            "device": engine.device,
            "dtype": engine.dtype,
            "tensorParallelSize": engine.tensor_parallel_size,
            "kvCache": _given(
                {
                    "memoryFraction": _number(engine.kv_memory_fraction),
                    "size": engine.kv_bytes,
                    "prefixCaching": engine.prefix_caching,
                }
            ),
            "maxRunning": engine.max_running,
            "maxBatchTokens": engine.max_batch_tokens,
            "threads": engine.threads,
            "attention": engine.attention,
            "speculation": {
                "mode": engine.speculation.mode,
                "drafter": engine.speculation.drafter,
                "maxDraftTokens": engine.speculation.max_draft_tokens,
            },
            "rollout": {
                "maxSurge": engine.rollout.max_surge,
                "maxUnavailable": engine.rollout.max_unavailable,
                "onOperatorUpgrade": engine.rollout.on_operator_upgrade,
            },
            **_pod(engine.pod),
        }
    )


def _gateway(gateway: GatewaySpec) -> dict[str, object]:
    return _given(
        {
            "replicas": gateway.replicas,
            "maxHops": gateway.max_hops,
            "holdTimeout": format_duration(gateway.hold_timeout_s),
            "auth": gateway.auth_secret and {"secretName": gateway.auth_secret},
            "tls": gateway.tls_secret and {"secretName": gateway.tls_secret},
            "service": {"type": gateway.service_type},
            **_pod(gateway.pod),
        }
    )


def _pod(pod: PodSpec) -> dict[str, object]:
    return {
        "image": _given(
            {
                "repository": pod.image.repository,
                "tag": pod.image.tag,
                "pullPolicy": pod.image.pull_policy,
                "pullSecrets": [{"name": name} for name in pod.image.pull_secrets],
            }
        ),
        "resources": dict(pod.resources),
        "podTemplate": dict(pod.pod_template),
    }


def _slo_class(slo_class: SloClass) -> dict[str, object]:
    tightest = {
        "ttft": _duration(slo_class.tightest_ttft_s),
        "tpot": _duration(slo_class.tightest_tpot_s),
    }
    return {
        "name": slo_class.name,
        "ttft": _ttft(slo_class.ttft),
        **_stages(slo_class.stages),
        "objectivePercent": _percent(slo_class.objective),
        "onInfeasible": slo_class.on_infeasible.value,
        "weight": _number(slo_class.weight),
        "bank": slo_class.bank.value,
        "tightest": _given(tightest),
    }


def _ttft(ttft: Ttft) -> dict[str, object]:
    if ttft.target_s is not None:
        return {"target": format_duration(ttft.target_s)}
    assert ttft.slowdown is not None
    return {"slowdown": _number(ttft.slowdown), "floor": format_duration(ttft.floor_s)}


def _stages(stages: tuple[Stage, ...]) -> dict[str, object]:
    if len(stages) == 1 and stages[0].name == PLAIN_STAGE:
        return {"tpot": format_duration(stages[0].tpot_s)}
    entries = [
        {"name": stage.name, "tpot": format_duration(stage.tpot_s), "until": stage.until}
        for stage in stages
    ]
    return {"stages": [_given(entry) for entry in entries]}


def _autoscaling(autoscaling: AutoscalingSpec | None) -> dict[str, object] | None:
    if autoscaling is None:
        return None
    return {
        "minReplicas": autoscaling.min_replicas,
        "maxReplicas": autoscaling.max_replicas,
        "targetAttainmentPercent": _percent(autoscaling.target_attainment),
        "scaleDownDelay": format_duration(autoscaling.scale_down_delay_s),
    }


def _number(value: float) -> str:
    """A decimal as text: a manifest's numbers have at most 6 decimals, so nothing is lost."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _percent(share: float) -> str:
    return _number(share * 100)


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else format_duration(seconds)


def _given(mapping: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in mapping.items() if value is not None}
