"""What the machines give for their money: promises kept per GPU."""

from dashboards.panels import RATE, SERVICE, Query, board, lines, of_replicas, value
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row, TextBoxVariable

KEPT = f'sum by (service) (rate(sloserve_slo_attained_total{{{SERVICE}, promise="all"}}[{RATE}]))'
DEVICES = f"sum by (service) ({of_replicas('sloserve_replica_devices')})"


def _tokens(name: str) -> str:
    return f"sum by (service) ({of_replicas(f'rate({name}[{RATE}])')})"


def capacity() -> Dashboard:
    """Goodput per GPU; on CPU a replica counts as one device."""
    output = _tokens("vllm:generation_tokens_total")
    return (
        board(
            "capacity",
            "Capacity and cost",
            "Promises kept per GPU and what they cost. On CPU a replica counts as one device.",
            "namespace",
            "service",
            "replica",
        )
        .with_variable(TextBoxVariable("price").label("Price of a GPU-hour").default_value("2.00"))
        .with_row(Row("Now"))
        .with_panel(
            value(
                "Goodput per GPU",
                "Requests per second that kept their promise, per device.",
                Query(f"{KEPT} / {DEVICES}", "{{service}}"),
                unit="reqps",
            )
        )
        .with_panel(
            value(
                "GPUs",
                "Devices that compute.",
                Query(DEVICES, "{{service}}"),
                unit="none",
            )
        )
        .with_panel(
            value(
                "Cost of 1000 kept promises",
                "At the price of a GPU-hour above, with all devices paid for, busy or not.",
                Query(
                    f"1000 * $price * {DEVICES} / 3600 / ({KEPT} > 0)",
                    "{{service}}",
                ),
                unit="currencyUSD",
            )
        )
        .with_panel(
            value(
                "Cost of a million output tokens",
                "The same money over all output tokens, kept promises or not.",
                Query(f"1e6 * $price * {DEVICES} / 3600 / ({output} > 0)", "{{service}}"),
                unit="currencyUSD",
            )
        )
        .with_row(Row("Over time"))
        .with_panel(
            lines(
                "Goodput per GPU over time",
                "Falls when load falls, and when promises break; the next panels tell which.",
                Query(f"{KEPT} / {DEVICES}", "{{service}}"),
                unit="reqps",
                span=12,
            )
        )
        .with_panel(
            lines(
                "Busy share and attainment",
                "Busy and kept: well sized. Busy and broken: too small. Idle and kept: too large.",
                Query(
                    f"avg by (service) ({of_replicas(f'rate(sloserve_step_seconds_sum[{RATE}])')})",
                    "busy {{service}}",
                ),
                Query(
                    f"{KEPT} / (sum by (service) "
                    f"(rate(sloserve_slo_requests_total{{{SERVICE}}}[{RATE}])) > 0)",
                    "kept {{service}}",
                ),
                unit="percentunit",
                span=12,
            )
        )
        .with_panel(
            lines(
                "Token throughput",
                "Prompt and output tokens per second.",
                Query(_tokens("vllm:prompt_tokens_total"), "prompt {{service}}"),
                Query(output, "output {{service}}"),
                unit="short",
                span=12,
            )
        )
        .with_panel(
            lines(
                "Token supply left",
                "Tokens per second that all replicas could still compute beside their promises.",
                Query(
                    f"sum by (service) ({of_replicas('sloserve_token_supply_per_second')})",
                    "{{service}}",
                ),
                unit="short",
                span=12,
            )
        )
    )
