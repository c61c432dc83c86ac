"""`model`, `engine` and `gateway` of a manifest."""

import re
from collections.abc import Mapping
from decimal import Decimal

from sloserve.errors import BadInput
from sloserve.slo.cluster import CacheSpec, ImageSpec, PodSpec, RolloutSpec, SecretKey
from sloserve.slo.duration import parse_size
from sloserve.slo.fields import Fields, unique, whole
from sloserve.slo.service import (
    TOOL_PARSERS,
    EngineSpec,
    GatewaySpec,
    LoraSpec,
    ModelSpec,
    SpeculationSpec,
)
from sloserve.slo.sources import MANIFEST_SOURCE, parse_source

_SECRET = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
MAX_RESOURCES = 32
_SECRET_HINT = "the name of an object: lower-case letters, digits, '-' and '.'"


def parse_model(spec: Fields, *, service: str) -> ModelSpec:
    """`model`; `servedName` defaults to the service's name."""
    spec.require("model", "{source: builtin://tiny}")
    model = spec.inner(
        "model",
        "source",
        "revision",
        "servedName",
        "maxModelLen",
        "tokenSecretRef",
        "cache",
        "loadTimeout",
        "chatTemplate",
        "toolParser",
        "lora",
    )
    model.require("source", "builtin://tiny")
    adapters = model.items("lora", "name", "source", most=16)
    for adapter in adapters:
        adapter.require("name", "polite")
        adapter.require("source", "hf://org/name")
    lora = tuple(
        LoraSpec(adapter.text("name", ""), _source(adapter, "source")) for adapter in adapters
    )
    unique([adapter.name for adapter in lora], model.at("lora"), "adapters")
    served_name = model.text(
        "servedName",
        service,
        pattern=r"[\w][-\w./:]*",
        hint="letters, digits and -._/:",
        longest=128,
    )
    if served_name in [adapter.name for adapter in lora]:
        raise BadInput(
            f"names an adapter {served_name!r}, which is the name of the model itself; give the "
            "adapter another",
            field=model.at("lora"),
        )
    return ModelSpec(
        source=_source(model, "source"),
        revision=model.text("revision", "main"),
        served_name=served_name,
        max_model_len=model.integer("maxModelLen", None, least=16, most=16_777_216),
        chat_template=model.text("chatTemplate", None, longest=65536),
        tool_parser=model.choice("toolParser", "", *TOOL_PARSERS) or None,
        lora=lora,
        token_secret=_parse_secret_key(model),
        cache=_parse_cache(model),
        load_timeout_s=model.duration("loadTimeout", 1800.0, least_s=1.0, most_s=86400.0),
    )


def parse_engine(spec: Fields) -> EngineSpec:
    """`engine`; everything has a default."""
    engine = spec.inner(
        "engine",
        "device",
        "dtype",
        "tensorParallelSize",
        "kvCache",
        "speculation",
        "maxRunning",
        "maxBatchTokens",
        "threads",
        "attention",
        "image",
        "resources",
        "rollout",
        "podTemplate",
    )
    kv = engine.inner("kvCache", "memoryFraction", "size", "prefixCaching")
    size = kv.get("size")
    speculation = engine.inner("speculation", "mode", "drafter", "maxDraftTokens")
    return EngineSpec(
        device=engine.choice("device", "cpu", "cpu", "cuda"),
        dtype=engine.choice("dtype", "auto", "auto", "float32", "bfloat16", "float16"),
        tensor_parallel_size=engine.integer("tensorParallelSize", 1, least=1, most=64),
        kv_memory_fraction=float(
            kv.decimal("memoryFraction", Decimal("0.9"), least="0.01", most="0.99")
        ),
        kv_bytes=None if size is None else parse_size(size, field=kv.at("size")),
        prefix_caching=kv.flag("prefixCaching", True),
        max_running=engine.integer("maxRunning", 256, least=1, most=4096),
        max_batch_tokens=engine.integer("maxBatchTokens", 8192, least=16, most=1_048_576),
        threads=engine.integer("threads", None, least=1, most=1024),
        attention=engine.choice(
            "attention", "auto", "auto", "torch", "compiled", "triton", "flash-attn"
        ),
        speculation=SpeculationSpec(
            mode=speculation.choice("mode", "Auto", "Auto", "Never"),
            drafter=_drafter(speculation),
            max_draft_tokens=speculation.integer("maxDraftTokens", 8, least=1, most=64),
        ),
        rollout=_parse_rollout(engine),
        pod=_parse_pod(engine),
    )


def parse_gateway(spec: Fields) -> GatewaySpec:
    """`gateway`; everything has a default."""
    gateway = spec.inner(
        "gateway",
        "replicas",
        "auth",
        "tls",
        "service",
        "maxHops",
        "holdTimeout",
        "image",
        "resources",
        "podTemplate",
    )
    return GatewaySpec(
        max_hops=gateway.integer("maxHops", None, least=1, most=16),
        hold_timeout_s=gateway.duration("holdTimeout", 300.0, least_s=0.0, most_s=3600.0),
        replicas=gateway.integer("replicas", 2, least=0, most=100),
        auth_secret=_secret_name(gateway, "auth"),
        tls_secret=_secret_name(gateway, "tls"),
        service_type=gateway.inner("service", "type").choice(
            "type", "ClusterIP", "ClusterIP", "NodePort", "LoadBalancer"
        ),
        pod=_parse_pod(gateway),
    )


def _source(node: Fields, key: str) -> str:
    text, field = node.text(key, "", longest=512), node.at(key)
    if parse_source(text, field=field).hint:
        raise BadInput(f"{text!r} is a bare path; write file:///absolute/path", field=field)
    if not re.fullmatch(MANIFEST_SOURCE, text, re.ASCII):
        raise BadInput(
            f"{text!r} begins or ends with a blank, or holds control characters; remove them",
            field=field,
        )
    return text


def _drafter(speculation: Fields) -> str:
    if speculation.get("drafter") in (None, "ngram"):
        return "ngram"
    return _source(speculation, "drafter")


def _parse_secret_key(model: Fields) -> SecretKey | None:
    if not model.has("tokenSecretRef"):
        return None
    ref = model.inner("tokenSecretRef", "name", "key")
    ref.require("name", "hf-token")
    name = ref.text("name", "", pattern=_SECRET, hint=_SECRET_HINT)
    return SecretKey(name, ref.text("key", "token", pattern=r"[-._\w]+", hint="a key of a Secret"))


def _parse_cache(model: Fields) -> CacheSpec:
    cache = model.inner("cache", "claimName", "sizeLimit")
    if cache.has("claimName") and cache.has("sizeLimit"):
        raise BadInput(
            "is for an emptyDir, which claimName replaces; keep one of them",
            field=cache.at("sizeLimit"),
        )
    limit = cache.get("sizeLimit")
    if limit is not None:
        parse_size(limit, field=cache.at("sizeLimit"))
    return CacheSpec(
        claim_name=cache.text("claimName", None, pattern=_SECRET, hint=_SECRET_HINT),
        size_limit=None if limit is None else str(limit),
    )


def _secret_name(gateway: Fields, key: str) -> str | None:
    if not gateway.has(key):
        return None
    node = gateway.inner(key, "secretName")
    node.require("secretName", "keys")
    return node.text("secretName", "", pattern=_SECRET, hint=_SECRET_HINT)


def _parse_rollout(engine: Fields) -> RolloutSpec:
    rollout = engine.inner("rollout", "maxSurge", "maxUnavailable", "onOperatorUpgrade")
    surge = _count_or_share(rollout, "maxSurge", 1)
    missing = _count_or_share(rollout, "maxUnavailable", 0)
    if surge in (0, "0%") and missing in (0, "0%"):
        raise BadInput(
            "0 together with maxSurge 0 leaves no room to roll; raise one of them",
            field=rollout.at("maxUnavailable"),
        )
    return RolloutSpec(surge, missing, rollout.flag("onOperatorUpgrade", False))


def _count_or_share(node: Fields, key: str, default: int) -> int | str:
    value = node.get(key)
    if isinstance(value, str):
        return node.text(
            key,
            "",
            pattern=r"(0|[1-9]\d?|100)%",
            hint="a count, or a share from 0% to 100%",
        )
    return node.integer(key, default, least=0, most=1000)


def _parse_pod(node: Fields) -> PodSpec:
    image = node.inner("image", "repository", "tag", "pullPolicy", "pullSecrets")
    secrets = image.items("pullSecrets", "name", most=16)
    for secret in secrets:
        secret.require("name", "registry")
    has_policy = image.has("pullPolicy")
    policy = image.choice("pullPolicy", "Always", "Always", "IfNotPresent", "Never")
    return PodSpec(
        image=ImageSpec(
            repository=image.text("repository", None, longest=512),
            tag=image.text("tag", None, pattern=r"\w[\w.-]{0,127}", hint="an image tag"),
            pull_policy=policy if has_policy else None,
            pull_secrets=tuple(
                secret.text("name", "", pattern=_SECRET, hint=_SECRET_HINT) for secret in secrets
            ),
        ),
        resources=_parse_resources(node),
        pod_template=node.opaque("podTemplate"),
    )


def _parse_resources(node: Fields) -> Mapping[str, object]:
    """Resource requirements as they are, but for amounts that are null: those are not given."""
    resources = node.inner("resources", "limits", "requests", "claims")
    for part in ("limits", "requests"):
        amounts = {k: v for k, v in resources.opaque(part).items() if v is not None}
        if len(amounts) > MAX_RESOURCES:
            raise BadInput(
                f"has {len(amounts)} entries; at most {MAX_RESOURCES} are allowed",
                field=resources.at(part),
            )
        for kind, amount in amounts.items():
            text = str(whole(amount))
            known = isinstance(amount, int | float | str) and not isinstance(amount, bool)
            if not known or len(text) > 32 or not re.fullmatch(_QUANTITY, text):
                raise BadInput(
                    f"is {amount!r}; must be a quantity, as 1, 500m or 8Gi",
                    field=f"{resources.at(part)}.{kind}",
                )
            if isinstance(amount, float) and not amount.is_integer():
                raise BadInput(
                    f"is {amount!r}; a number with decimals must be in quotes: {text!r}",
                    field=f"{resources.at(part)}.{kind}",
                )
    for claim in resources.items("claims", "name", "request", most=16):
        claim.require("name", "gpu")
        claim.text("name", "")
        claim.text("request", None)
    given: dict[str, object] = {}
    for key, value in node.opaque("resources").items():
        if isinstance(value, Mapping):
            value = {kind: amount for kind, amount in value.items() if amount is not None}
        given[key] = value
    return given
