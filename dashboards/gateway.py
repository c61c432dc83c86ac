"""What the gateways decide, what they add, and what they know of the replicas."""

from dashboards.panels import CLASS, RATE, SERVICE, Query, board, lines, quantile
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row


def gateway() -> Dashboard:
    """All gateways of a service together."""
    requests = f"sloserve_requests_total{{{CLASS}}}"
    no_promise = f'sloserve_requests_total{{{CLASS}, decision=~"declined|degraded"}}'
    added = f"rate(sloserve_gateway_added_seconds_bucket{{{SERVICE}}}[{RATE}])"
    hops = f"rate(sloserve_gateway_hops_sum{{{SERVICE}}}[{RATE}])"
    passed = f"rate(sloserve_gateway_hops_count{{{SERVICE}}}[{RATE}])"
    return (
        board(
            "gateway",
            "Gateway",
            "What the gateways decide, what time they add, and what they know of the replicas.",
            "namespace",
            "service",
            "slo_class",
        )
        .with_row(Row("Decisions"))
        .with_panel(
            lines(
                "Requests by outcome",
                "How requests ended: finished, failed, cancelled by the client, refused.",
                Query(f"sum by (outcome) (rate({requests}[{RATE}]))", "{{outcome}}"),
                unit="reqps",
                stack=True,
            )
        )
        .with_panel(
            lines(
                "Without a promise, by reason",
                "Why requests were declined or served best-effort, per second.",
                Query(
                    f"sum by (slo_class, reason) (rate({no_promise}[{RATE}]))",
                    "{{slo_class}} {{reason}}",
                ),
                unit="reqps",
                stack=True,
            )
        )
        .with_panel(
            lines(
                "Pending",
                "Requests that wait in the gateway for a replica that can promise.",
                Query(
                    f"sum by (service, slo_class) (sloserve_gateway_pending{{{CLASS}}})",
                    "{{service}} {{slo_class}}",
                ),
                unit="short",
            )
        )
        .with_row(Row("Cost of the way"))
        .with_panel(
            lines(
                "Time added",
                "What the gateway itself adds before the first byte.",
                Query(quantile(0.5, added), "p50"),
                Query(quantile(0.99, added), "p99"),
                unit="s",
            )
        )
        .with_panel(
            lines(
                "Replicas asked per request",
                "Above 1: replicas decline, or die, and the gateway goes on to the next.",
                Query(
                    f"sum by (service) ({hops}) / (sum by (service) ({passed}) > 0)", "{{service}}"
                ),
                unit="none",
            )
        )
        .with_panel(
            lines(
                "In flight",
                "Requests forwarded and not finished, per gateway.",
                Query(f"sloserve_gateway_inflight{{{SERVICE}}}", "{{service}} {{instance}}"),
                unit="short",
            )
        )
        .with_row(Row("What they know"))
        .with_panel(
            lines(
                "Replicas by state",
                "The most that any gateway sees in each state; unknown: silent for over a second.",
                Query(
                    f"max by (service, state) (sloserve_gateway_replicas{{{SERVICE}}})",
                    "{{service}} {{state}}",
                ),
                unit="short",
            )
        )
        .with_panel(
            lines(
                "Age of the oldest report",
                "Above 1 s routing stops believing it and goes by least in flight.",
                Query(
                    f"max by (service) (sloserve_gateway_report_age_seconds{{{SERVICE}}})",
                    "{{service}}",
                ),
                unit="s",
            )
        )
        .with_panel(
            lines(
                "Gateways, and the manifest they serve",
                "How many report, and the oldest generation among them: it lags while a change "
                "spreads.",
                Query(f"count by (service) (sloserve_gateway_inflight{{{SERVICE}}})", "gateways"),
                Query(
                    "min by (service) (sloserve_config_generation "
                    f"* on (job, instance) group_left (service) "
                    f"sloserve_gateway_inflight{{{SERVICE}}} ^ 0)",
                    "oldest generation",
                ),
                unit="short",
            )
        )
    )
