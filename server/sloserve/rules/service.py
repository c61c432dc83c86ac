"""All rules of a service: one pure function of its manifest."""

from sloserve.rules.burn import burn_alerts, silence_alerts
from sloserve.rules.ladder import ladder
from sloserve.rules.operating import operator_alerts
from sloserve.rules.recording import about, error_ratios, of_the_period, windows_s
from sloserve.rules.rule import Group, Json, Rule
from sloserve.rules.scope import Scope
from sloserve.rules.serving import decline_alert, gateway_alerts, replica_alerts
from sloserve.rules.settings import RuleSettings
from sloserve.slo import ServiceSpec, SloClass

PERIOD_INTERVAL_S = 120.0
"""The period is long and changes slowly; longer than half of Prometheus' look-back would gap."""


def service_groups(spec: ServiceSpec, settings: RuleSettings | None = None) -> tuple[Group, ...]:
    """The groups of one service: two per class, and one for its gateways and replicas."""
    settings = settings or RuleSettings()
    groups = [group for c in spec.classes for group in _class_groups(spec, c, settings)]
    whole = Scope(settings, service=spec.name)
    gateways = Scope(settings, service=spec.name, dashboard="sloserve-gateway")
    replicas = Scope(settings, service=spec.name, dashboard="sloserve-replicas")
    silence = silence_alerts(whole) if spec.gateway.replicas > 0 else []
    serving = (*silence, *gateway_alerts(gateways, spec), *replica_alerts(replicas, spec))
    groups.append(Group(_name(settings, spec.name, "serving"), serving, settings.interval_s))
    return tuple(groups)


def operator_groups(settings: RuleSettings | None = None) -> tuple[Group, ...]:
    """The operator's own group: once per cluster."""
    settings = settings or RuleSettings()
    return (Group("sloserve/operator", operator_alerts(settings), settings.interval_s),)


def rules_file(groups: tuple[Group, ...]) -> Json:
    """The content of a Prometheus rules file; also the `spec` of a PrometheusRule."""
    return {"groups": [group.to_dict() for group in groups]}


def _class_groups(
    spec: ServiceSpec, slo_class: SloClass, settings: RuleSettings
) -> tuple[Group, Group]:
    scope = Scope(settings, service=spec.name, slo_class=slo_class.name)
    period_s = spec.observability.period_s
    rungs = ladder(slo_class.objective, period_s, slow=settings.slow_rungs)
    wanted_s = [w for w in windows_s(rungs) if w != period_s]
    now: tuple[Rule, ...] = (
        *error_ratios(scope, wanted_s),
        *about(scope, slo_class, period_s),
        *burn_alerts(scope, slo_class, rungs, period_s=period_s),
        decline_alert(scope, slo_class),
    )
    period = of_the_period(scope, slo_class, period_s)
    name = _name(settings, spec.name, slo_class.name)
    return (
        Group(name, now, settings.interval_s),
        Group(f"{name}/period", period, PERIOD_INTERVAL_S),
    )


def _name(settings: RuleSettings, *parts: str) -> str:
    return "/".join(part for part in ("sloserve", settings.namespace, *parts) if part)
