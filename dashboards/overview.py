"""SLO overview: which promise is at risk, since when, and what binds; then how it came."""

from dashboards.panels import CLASS, RATE, SERVICE, Column, Query, board, grid, lines
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

_OF_CLASS = "namespace, service, slo_class"
_BY = f"by ({_OF_CLASS})"
_ALERT = f"alertname, severity, {_OF_CLASS}"
ELIGIBLE_1H = f"(sum {_BY} (increase(sloserve_slo_requests_total{{{CLASS}}}[1h])) > 0)"


def _kept_1h(promise: str) -> str:
    kept = f'sloserve_slo_attained_total{{{CLASS}, promise="{promise}"}}'
    return f"sum {_BY} (increase({kept}[1h])) / {ELIGIBLE_1H}"


def _burn(window: str) -> str:
    ratio = f"max {_BY} (slo:sli_error:ratio_rate{window}{{{CLASS}}})"
    return f"{ratio} / max {_BY} (slo:error_budget:ratio{{{CLASS}}})"


def overview() -> Dashboard:
    """The first board to open."""
    burn = f"max {_BY} (slo:current_burn_rate:ratio{{{CLASS}}})"
    fine = f"timestamp(slo:current_burn_rate:ratio{{{CLASS}}} <= 1)"
    missed = f"increase(sloserve_slo_missed_total{{{CLASS}}}[1h])"
    ours = f'{SERVICE}, alertname=~"Sloserve.+"'
    firing = f'max by ({_ALERT}) (ALERTS{{{ours}, alertstate="firing"}})'
    return (
        board(
            "slo",
            "SLO overview",
            "Which promise is at risk, since when, and what binds.",
            "namespace",
            "service",
            "slo_class",
        )
        .with_row(Row("At risk: which promise, since when, what binds"))
        .with_panel(
            grid(
                "Promises by risk",
                "Which class burns its budget (1: exactly as fast as it is given), whether TTFT or "
                "TPOT is broken, until when it was within its objective, and what binds: the "
                "commonest reason of the misses in the last hour.",
                Column("Burn rate, 5 min", burn, "none", ((1, "orange"), (6, "red"))),
                Column(
                    "Within objective until",
                    f"1000 * max {_BY} (max_over_time({fine}[1d:30s]))",
                    "dateTimeFromNow",
                ),
                Column(
                    "Misses, 1 h",
                    f"topk {_BY} (1, sum by ({_OF_CLASS}, reason) ({missed}) > 0)",
                    "short",
                ),
                Column("TTFT kept, 1 h", _kept_1h("ttft"), "percentunit"),
                Column("TPOT kept, 1 h", _kept_1h("tpot"), "percentunit"),
                Column(
                    "Budget left",
                    f"max {_BY} (slo:period_error_budget_remaining:ratio{{{CLASS}}})",
                    "percentunit",
                ),
                labels={
                    "namespace": "Namespace",
                    "service": "Service",
                    "slo_class": "Class",
                    "reason": "What binds",
                },
                sort="Burn rate, 5 min",
                span=16,
            )
        )
        .with_panel(
            grid(
                "Alerts that fire",
                "What somebody was told about, and since when it is so; the runbook has an entry "
                "for each.",
                Column(
                    "Since",
                    f"1000 * min by ({_ALERT}) (ALERTS_FOR_STATE{{{ours}}}) "
                    f"* on ({_ALERT}) {firing}",
                    "dateTimeFromNow",
                ),
                labels={
                    "alertname": "Alert",
                    "severity": "Severity",
                    "namespace": "Namespace",
                    "service": "Service",
                    "slo_class": "Class",
                },
                sort="Severity",
                descending=False,
                nothing="No alert fires",
                span=8,
            )
        )
        .with_row(Row("Attainment and budget"))
        .with_panel(
            lines(
                "Attainment",
                "Share of requests that kept every promise in the last five minutes, against the "
                "objective. Idle is blank, not 100 %.",
                Query(
                    f"1 - max {_BY} (slo:sli_error:ratio_rate5m{{{CLASS}}})",
                    "{{service}} {{slo_class}}",
                ),
                Query(
                    f"max {_BY} (slo:objective:ratio{{{CLASS}}})",
                    "objective {{service}} {{slo_class}}",
                ),
                unit="percentunit",
            )
        )
        .with_panel(
            lines(
                "Burn rate",
                "How fast the budget is spent over three windows; 1 spends it exactly in a period.",
                Query(_burn("5m"), "{{service}} {{slo_class}} 5 min"),
                Query(_burn("1h"), "{{service}} {{slo_class}} 1 h"),
                Query(_burn("6h"), "{{service}} {{slo_class}} 6 h"),
                unit="none",
                marks=((1, "orange"),),
            )
        )
        .with_panel(
            lines(
                "Budget left in the period",
                "Share of the period's allowed misses that is left, counted by requests; below 0 "
                "the objective is broken.",
                Query(
                    f"max {_BY} (slo:period_error_budget_remaining:ratio{{{CLASS}}})",
                    "{{service}} {{slo_class}}",
                ),
                unit="percentunit",
                marks=((0, "orange"),),
            )
        )
        .with_row(Row("Goodput, and what became of the requests"))
        .with_panel(
            lines(
                "Offered and kept",
                "Requests that came, and those whose promise was kept (goodput), per second.",
                Query(
                    f"sum by (slo_class) (rate(sloserve_requests_total{{{CLASS}}}[{RATE}]))",
                    "offered {{slo_class}}",
                ),
                Query(
                    "sum by (slo_class) "
                    f'(rate(sloserve_slo_attained_total{{{CLASS}, promise="all"}}[{RATE}]))',
                    "kept {{slo_class}}",
                ),
                unit="reqps",
            )
        )
        .with_panel(
            lines(
                "Decisions",
                "Admitted, deferred, degraded or declined, per second.",
                Query(
                    f"sum by (decision) (rate(sloserve_requests_total{{{CLASS}}}[{RATE}]))",
                    "{{decision}}",
                ),
                unit="reqps",
                stack=True,
            )
        )
        .with_panel(
            lines(
                "Misses by what bound",
                "Why promises were not made (TTFT, TPOT, KV, Replicas) or not kept "
                "(LateFirstToken, LateToken), per second.",
                Query(
                    f"sum by (reason) (rate(sloserve_slo_missed_total{{{CLASS}}}[{RATE}]))",
                    "{{reason}}",
                ),
                unit="reqps",
                stack=True,
            )
        )
    )
