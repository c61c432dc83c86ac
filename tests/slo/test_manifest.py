"""What the parser makes of a manifest, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest

from sloserve.errors import BadInput
from sloserve.slo import Bank, OnInfeasible, Stage, Ttft, parse_service

Manifest = dict[str, Any]
Changed = Callable[[Manifest, str, object], Manifest]


def test_a_complete_manifest_is_read_field_by_field(complete: Manifest) -> None:
    spec = parse_service(complete)
    assert (spec.name, spec.namespace, spec.generation) == ("assistant", "team-a", 7)
    assert spec.model.source == "hf://Qwen/Qwen3-8B"
    assert (spec.model.served_name, spec.model.max_model_len) == ("qwen", 8192)
    assert spec.model.load_timeout_s == 1800
    assert (spec.engine.device, spec.engine.dtype) == ("cuda", "bfloat16")
    assert spec.engine.kv_memory_fraction == 0.85
    assert spec.engine.kv_bytes == 8 * 2**30
    assert not spec.engine.prefix_caching
    assert (spec.engine.max_running, spec.engine.max_batch_tokens) == (64, 4096)
    assert spec.engine.rollout.max_surge == "25%"
    assert spec.engine.pod.image.pull_secrets == ("registry",)
    assert spec.engine.pod.pod_template == {"spec": {"priorityClassName": "high"}}
    assert spec.default_class == "code"
    assert spec.gateway.max_hops == 3
    assert spec.gateway.hold_timeout_s == 90
    assert spec.gateway.service_type == "LoadBalancer"
    assert spec.autoscaling is not None
    assert spec.autoscaling.target_attainment == 0.97
    assert spec.observability.period_s == 7 * 86400
    chat, code, reason = spec.classes
    assert chat.ttft == Ttft(slowdown=5, floor_s=0.2)
    assert chat.stages == (Stage("decode", 0.1),)
    assert (code.objective, code.weight, code.bank) == (0.995, 2, Bank.PROMISE)
    assert code.on_infeasible is OnInfeasible.DECLINE
    assert (code.tightest_ttft_s, code.tightest_tpot_s) == (0.2, 0.02)
    assert reason.stages == (Stage("thinking", 0.05, "</think>"), Stage("answer", 0.1))


def test_what_is_left_out_takes_its_default(minimal: Manifest) -> None:
    spec = parse_service(minimal)
    assert spec.model.served_name == "small"
    assert spec.default_class == "chat"
    assert (spec.replicas, spec.drain_timeout_s, spec.generation) == (1, 600, 1)
    assert (spec.engine.device, spec.engine.dtype) == ("cpu", "auto")
    assert spec.autoscaling is None
    assert spec.gateway.max_hops is None
    (chat,) = spec.classes
    assert (chat.objective, chat.on_infeasible, chat.weight) == (0.99, OnInfeasible.DEGRADE, 1)
    assert chat.tightest_ttft_s is None


def test_null_takes_the_default_as_in_kubernetes(minimal: Manifest, changed: Changed) -> None:
    assert parse_service(changed(minimal, "spec/replicas", None)).replicas == 1


def test_what_the_api_server_adds_is_no_mistake(minimal: Manifest, changed: Changed) -> None:
    changed(minimal, "metadata/uid", "1234")
    changed(minimal, "metadata/managedFields", [{}])
    changed(minimal, "status/ready", "2/2")
    assert parse_service(minimal).name == "small"


# (path, value, field of the refusal, a part of its message)
FAULTS = [
    ("apiVersion", "sloserve.io/v1", "apiVersion", "sloserve.io/v1alpha1"),
    ("kind", "SLOservice", "kind", "did you mean SLOService?"),
    ("kind", ..., "kind", "is missing"),
    ("metadata/name", ..., "metadata.name", "is missing"),
    ("metadata/name", "Assistant", "metadata.name", "lower-case"),
    ("metadata/name", "a" * 41, "metadata.name", "41 characters; at most 40"),
    ("metadata/name", "1st", "metadata.name", "starting with a letter"),
    ("metadata/names", "x", "metadata.names", "did you mean 'name'?"),
    ("spec", ..., "spec", "is missing"),
    ("spec", "yes", "spec", "must be a mapping with model"),
    ("spec/modle", {}, "spec.modle", "did you mean 'model'?"),
    ("spec/model", ..., "spec.model", "is missing"),
    ("spec/model/source", ..., "spec.model.source", "builtin://tiny"),
    ("spec/model/source", "gpt2", "spec.model.source", "hf://org/name"),
    ("spec/model/source", 7, "spec.model.source", "the number 7"),
    ("spec/model/servedName", "two words", "spec.model.servedName", "letters, digits"),
    ("spec/model/maxModelLen", "8k", "spec.model.maxModelLen", "from 16 to"),
    ("spec/model/maxModelLen", True, "spec.model.maxModelLen", "whole number"),
    ("spec/model/loadTimeout", 30, "spec.model.loadTimeout", "a duration with its unit"),
    ("spec/model/loadTimeout", "30", "spec.model.loadTimeout", "is it 30ms or 30s?"),
    ("spec/model/loadTimeout", "0s", "spec.model.loadTimeout", "from 1s to 24h"),
    ("spec/model/cache/sizeLimit", "1Gi", "spec.model.cache.sizeLimit", "keep one of them"),
    ("spec/model/lora/0/source", ..., "spec.model.lora[0].source", "is missing"),
    ("spec/model/tokenSecretRef/name", ..., "spec.model.tokenSecretRef.name", "is missing"),
    ("spec/engine/device", "gpu", "spec.engine.device", "one of cpu, cuda"),
    ("spec/engine/dtype", "fp16", "spec.engine.dtype", "float16"),
    ("spec/engine/tensorParallelSize", 0, "spec.engine.tensorParallelSize", "from 1 to 64"),
    (
        "spec/engine/kvCache/memoryFraction",
        "1.5",
        "spec.engine.kvCache.memoryFraction",
        "from 0.01 to 0.99",
    ),
    (
        "spec/engine/kvCache/memoryFraction",
        "nan",
        "spec.engine.kvCache.memoryFraction",
        "from 0.01 to 0.99",
    ),
    ("spec/engine/kvCache/size", "8 GB", "spec.engine.kvCache.size", "512Mi or 8Gi"),
    ("spec/engine/kvCache/prefixCaching", "yes", "spec.engine.kvCache.prefixCaching", "true or"),
    ("spec/engine/speculation/mode", "Always", "spec.engine.speculation.mode", "Auto, Never"),
    ("spec/engine/maxRunning", 0, "spec.engine.maxRunning", "from 1 to 4096"),
    ("spec/engine/rollout/maxSurge", "a lot", "spec.engine.rollout.maxSurge", "0% to 100%"),
    ("spec/engine/image/pullPolicy", "Sometimes", "spec.engine.image.pullPolicy", "Never"),
    ("spec/engine/resources/limit", {}, "spec.engine.resources.limit", "'limits'"),
    (
        "spec/engine/resources/limits/memory",
        [],
        "spec.engine.resources.limits.memory",
        "quantity",
    ),
    ("spec/engine/podTemplate", "x", "spec.engine.podTemplate", "must be a mapping"),
    ("spec/sloClasses", ..., "spec.sloClasses", "is missing"),
    ("spec/sloClasses", [], "spec.sloClasses", "1 to 16"),
    ("spec/sloClasses", {"chat": {}}, "spec.sloClasses", "must be a list"),
    ("spec/sloClasses/0", "chat", "spec.sloClasses[0]", "the text 'chat'"),
    ("spec/sloClasses/1/name", "chat", "spec.sloClasses[1].name", "two classes"),
    ("spec/sloClasses/0/name", ..., "spec.sloClasses[0].name", "is missing"),
    ("spec/sloClasses/0/tpott", "1s", "spec.sloClasses[0].tpott", "did you mean 'tpot'?"),
    ("spec/sloClasses/0/ttft", ..., "spec.sloClasses[0].ttft", "is missing"),
    ("spec/sloClasses/0/ttft", "500ms", "spec.sloClasses[0].ttft", "mapping with target"),
    ("spec/sloClasses/0/ttft", {}, "spec.sloClasses[0].ttft", "neither is"),
    (
        "spec/sloClasses/0/ttft/target",
        "1s",
        "spec.sloClasses[0].ttft",
        "exactly one of target and slowdown",
    ),
    ("spec/sloClasses/1/ttft/floor", "1s", "spec.sloClasses[1].ttft.floor", "remove it"),
    ("spec/sloClasses/1/ttft/target", "0.5ms", "spec.sloClasses[1].ttft.target", "from 1ms"),
    ("spec/sloClasses/0/ttft/slowdown", 0.5, "spec.sloClasses[0].ttft.slowdown", "from 1 to"),
    ("spec/sloClasses/0/ttft/slowdown", "fast", "spec.sloClasses[0].ttft.slowdown", "'fast'"),
    ("spec/sloClasses/1/tpot", "0.5ms", "spec.sloClasses[1].tpot", "is 0.5ms; must be from 1ms"),
    ("spec/sloClasses/1/tpot", "fast", "spec.sloClasses[1].tpot", "'fast' is not a duration"),
    ("spec/sloClasses/1/tpot", "1d", "spec.sloClasses[1].tpot", "not a duration"),
    ("spec/sloClasses/0/tpot", ..., "spec.sloClasses[0]", "exactly one of tpot and stages"),
    ("spec/sloClasses/2/tpot", "1s", "spec.sloClasses[2]", "both are"),
    ("spec/sloClasses/2/stages", [], "spec.sloClasses[2].stages", "1 to 8"),
    ("spec/sloClasses/2/stages/0/tpot", ..., "spec.sloClasses[2].stages[0].tpot", "is missing"),
    (
        "spec/sloClasses/2/stages/1/name",
        "thinking",
        "spec.sloClasses[2].stages[1].name",
        "two stages",
    ),
    ("spec/sloClasses/2/stages/1/until", "x", "spec.sloClasses[2].stages[1].until", "last stage"),
    (
        "spec/sloClasses/2/stages",
        [
            {"name": "a", "tpot": "1s", "until": "x"},
            {"name": "b", "tpot": "1s"},
            {"name": "c", "tpot": "1s"},
        ],
        "spec.sloClasses[2].stages[1].until",
        "every stage but the last",
    ),
    ("spec/sloClasses/0/objectivePercent", 100, "spec.sloClasses[0].objectivePercent", "99.999"),
    ("spec/sloClasses/0/objectivePercent", "99%", "spec.sloClasses[0].objectivePercent", "'99%'"),
    (
        "spec/sloClasses/0/onInfeasible",
        "degrade",
        "spec.sloClasses[0].onInfeasible",
        "did you mean Degrade?",
    ),
    ("spec/sloClasses/0/weight", 0, "spec.sloClasses[0].weight", "from 0.001"),
    ("spec/sloClasses/0/bank", "none", "spec.sloClasses[0].bank", "firstToken, promise"),
    (
        "spec/sloClasses/1/tightest/ttft",
        "1s",
        "spec.sloClasses[1].tightest.ttft",
        "must be at most 500ms",
    ),
    (
        "spec/sloClasses/1/tightest/tpot",
        "60ms",
        "spec.sloClasses[1].tightest.tpot",
        "must be at most 50ms",
    ),
    ("spec/defaultClass", "chatty", "spec.defaultClass", "sloClasses has chat, code, reason"),
    ("spec/replicas", -1, "spec.replicas", "from 0 to 1000"),
    ("spec/replicas", "2", "spec.replicas", "whole number"),
    ("spec/autoscaling/maxReplicas", ..., "spec.autoscaling.maxReplicas", "is missing"),
    ("spec/autoscaling/minReplicas", 9, "spec.autoscaling.minReplicas", "at most maxReplicas"),
    ("spec/gateway/maxHops", 0, "spec.gateway.maxHops", "from 1 to 16"),
    ("spec/gateway/holdTimeout", "2h", "spec.gateway.holdTimeout", "from 0s to 1h"),
    ("spec/gateway/service/type", "Headless", "spec.gateway.service.type", "NodePort"),
    ("spec/gateway/auth/secretName", ..., "spec.gateway.auth.secretName", "is missing"),
    ("spec/drain/timeout", "soon", "spec.drain.timeout", "not a duration"),
    ("spec/drain/time", "1s", "spec.drain.time", "did you mean 'timeout'?"),
    ("spec/observability/rules", "On", "spec.observability.rules", "Auto, Always, Never"),
    ("spec/observability/period", "91d", "spec.observability.period", "from 24h to 2160h"),
]


@pytest.mark.parametrize(
    ("path", "value", "field", "message"), FAULTS, ids=[f"{f[2]}={f[1]!r:.20}" for f in FAULTS]
)
def test_a_fault_is_refused_with_its_field_and_a_remedy(
    complete: Manifest, changed: Changed, path: str, value: object, field: str, message: str
) -> None:
    with pytest.raises(BadInput) as refusal:
        parse_service(changed(complete, path, value))
    assert refusal.value.field == field
    assert message in refusal.value.message
    assert refusal.value.message.startswith(f"{field}: ")
    assert "\n" not in refusal.value.message


def test_no_room_to_roll_is_refused(complete: Manifest, changed: Changed) -> None:
    rollout = {"maxSurge": 0, "maxUnavailable": "0%"}
    with pytest.raises(BadInput, match="no room to roll"):
        parse_service(changed(complete, "spec/engine/rollout", rollout))


def test_seventeen_classes_are_too_many(complete: Manifest, changed: Changed) -> None:
    many = [{"name": f"c{i}", "ttft": {"target": "1s"}, "tpot": "1s"} for i in range(17)]
    with pytest.raises(BadInput, match="has 17 entries; 1 to 16"):
        parse_service(changed(complete, "spec/sloClasses", many))


@pytest.mark.parametrize("manifest", [None, [], "kind: SLOService", 7])
def test_something_that_is_no_mapping_is_refused(manifest: object) -> None:
    with pytest.raises(BadInput, match="must be a mapping with apiVersion"):
        parse_service(manifest)
