"""What clients waited for, class by class, against what they were promised."""

from dashboards.panels import CLASS, RATE, Panel, Query, board, heat, lines, quantile
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

_SHARES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def latency() -> Dashboard:
    """One row per class."""
    return (
        board(
            "latency",
            "Class latency",
            "TTFT and TPOT of each class as clients saw them, against the target.",
            "namespace",
            "service",
            "slo_class",
        )
        .with_row(Row("$slo_class").repeat("slo_class"))
        .with_panel(_percentiles("TTFT", "ttft", "Time to first token"))
        .with_panel(_percentiles("TPOT", "tpot", "Mean time per output token of a request"))
        .with_panel(_spread("TTFT", "ttft"))
        .with_panel(_spread("TPOT", "tpot"))
    )


def _percentiles(word: str, promise: str, what: str) -> Panel:
    buckets = f"rate(sloserve_gateway_{promise}_seconds_bucket{{{CLASS}}}[{RATE}])"
    target = f'sloserve_slo_target_seconds{{{CLASS}, promise="{promise}"}}'
    return lines(
        f"{word} against target",
        f"{what}: half, 95 % and 99 % of the requests were at least that fast. A promise with a "
        "slowdown has its floor as target here, if it has one.",
        *(Query(quantile(share, buckets, "slo_class"), name) for share, name in _SHARES),
        Query(f"max by (slo_class) ({target})", "target {{slo_class}}"),
        unit="s",
        span=12,
    )


def _spread(word: str, promise: str) -> Panel:
    return heat(
        f"{word} spread",
        f"Where the requests' {word} lay: two humps mean two kinds of requests under one promise.",
        f"increase(sloserve_gateway_{promise}_seconds_bucket{{{CLASS}}}[{RATE}])",
        unit="s",
    )
