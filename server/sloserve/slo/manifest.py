"""The one parser of an SLOService manifest; strict: unknown fields are refused, with a hint."""

from decimal import Decimal

from sloserve.errors import BadInput
from sloserve.slo.cluster import Auto, AutoscalingSpec, ObservabilitySpec
from sloserve.slo.fields import Fields
from sloserve.slo.manifest_classes import parse_classes, parse_default_class
from sloserve.slo.manifest_run import parse_engine, parse_gateway, parse_model
from sloserve.slo.service import ServiceSpec

API_VERSION = "sloserve.io/v1alpha1"
KIND = "SLOService"
MAX_REPLICAS = 1000

_OBJECT_META = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "generation",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "selfLink",
    "generateName",
)


def parse_service(manifest: object) -> ServiceSpec:
    """
    The service that a manifest (the mapping that YAML gave) declares, defaults filled in.

    Raises BadInput, which names the field, what was seen, what is allowed and what to do.
    """
    top = Fields(manifest, "", "apiVersion", "kind", "metadata", "spec", "status")
    top.require("apiVersion", API_VERSION)
    top.choice("apiVersion", API_VERSION, API_VERSION)
    top.require("kind", KIND)
    top.choice("kind", KIND, KIND)
    meta = top.inner("metadata", *_OBJECT_META)
    meta.require("name", "assistant")
    name = meta.name("name", "")
    top.require("spec", "{model: ..., sloClasses: [...]}")
    spec = top.inner(
        "spec",
        "model",
        "engine",
        "sloClasses",
        "defaultClass",
        "replicas",
        "autoscaling",
        "gateway",
        "drain",
        "observability",
    )
    classes = parse_classes(spec)
    drain = spec.inner("drain", "timeout")
    return ServiceSpec(
        name=name,
        namespace=meta.text("namespace", ""),
        generation=meta.integer("generation", 1, least=0, most=2**62),
        model=parse_model(spec, service=name),
        engine=parse_engine(spec),
        classes=classes,
        default_class=parse_default_class(spec, classes),
        replicas=spec.integer("replicas", 1, least=0, most=MAX_REPLICAS),
        autoscaling=_parse_autoscaling(spec),
        gateway=parse_gateway(spec),
        drain_timeout_s=drain.duration("timeout", 600.0, least_s=0.0, most_s=86400.0),
        observability=_parse_observability(spec),
    )


def _parse_autoscaling(spec: Fields) -> AutoscalingSpec | None:
    if not spec.has("autoscaling"):
        return None
    node = spec.inner(
        "autoscaling", "minReplicas", "maxReplicas", "targetAttainmentPercent", "scaleDownDelay"
    )
    node.require("maxReplicas", "8")
    least = node.integer("minReplicas", 1, least=0, most=MAX_REPLICAS)
    most = node.integer("maxReplicas", 1, least=1, most=MAX_REPLICAS)
    if least > most:
        raise BadInput(
            f"is {least}; must be at most maxReplicas, which is {most}",
            field=node.at("minReplicas"),
        )
    percent = node.decimal("targetAttainmentPercent", Decimal(97), least="1", most="99.999")
    return AutoscalingSpec(
        max_replicas=most,
        min_replicas=least,
        target_attainment=float(percent / 100),
        scale_down_delay_s=node.duration("scaleDownDelay", 300.0, least_s=0.0, most_s=86400.0),
    )


def _parse_observability(spec: Fields) -> ObservabilitySpec:
    node = spec.inner("observability", "monitors", "rules", "dashboard", "period")
    node.text("period", None, pattern=r"[1-9][0-9]{0,3}[dh]", hint="whole days or hours, as 7d")
    return ObservabilitySpec(
        monitors=node.enum("monitors", Auto.AUTO),
        rules=node.enum("rules", Auto.AUTO),
        dashboard=node.enum("dashboard", Auto.AUTO),
        period_s=node.duration(
            "period", 7 * 86400.0, least_s=86400.0, most_s=90 * 86400.0, days=True
        ),
    )
