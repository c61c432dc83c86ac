"""Whether the planner's picture of the machine is right, and what its steps are used for."""

from dashboards.panels import RATE, Query, board, heat, lines, of_replicas, quantile
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

SLACK = 'sloserve_slack_seconds_bucket{slo_class=~"$slo_class"}'


def planner() -> Dashboard:
    """Steps, their prediction, slack, speculation."""
    seconds = f"rate(sloserve_step_seconds_sum[{RATE}])"
    buckets = of_replicas(f"rate(sloserve_step_seconds_bucket[{RATE}])")
    plans = of_replicas(f"rate(sloserve_plan_seconds_bucket[{RATE}])")
    errors = of_replicas(f"rate(sloserve_step_error_ratio_bucket[{RATE}])")
    mean = f"rate(sloserve_step_error_ratio_sum[{RATE}]) / " + (
        f"(rate(sloserve_step_error_ratio_count[{RATE}]) > 0)"
    )
    slack = of_replicas(f"rate({SLACK}[{RATE}])")
    return (
        board(
            "planner",
            "Planner",
            "Whether steps take as long as predicted, what they are used for, and how much slack "
            "promises have left.",
            "namespace",
            "service",
            "slo_class",
            "replica",
        )
        .with_row(Row("Steps"))
        .with_panel(
            lines(
                "Busy share",
                "Share of the time that a replica spends in steps; at 100 % it is never idle.",
                Query(of_replicas(seconds), "{{replica}}"),
                unit="percentunit",
                most=1,
            )
        )
        .with_panel(
            lines(
                "Tokens in steps",
                "What steps compute, per second: prefill, decode, draft; best effort is counted "
                "among the others as well.",
                Query(
                    f"sum by (kind) ({of_replicas(f'rate(sloserve_step_tokens_sum[{RATE}])')})",
                    "{{kind}}",
                ),
                unit="short",
            )
        )
        .with_panel(
            lines(
                "Step time",
                "How long steps take: half and 99 % of them.",
                Query(quantile(0.5, buckets), "p50"),
                Query(quantile(0.99, buckets), "p99"),
                unit="s",
            )
        )
        .with_row(Row("Predicted against actual"))
        .with_panel(
            lines(
                "Measured over predicted",
                "1 is exact. Above 1.25 the planner promises what it can't keep; below 0.75 it "
                "declines what it could. Learned: the factor on the profile that predictions "
                "include; far from 1, the profile is of another machine.",
                Query(of_replicas(mean), "{{replica}}"),
                Query(of_replicas("sloserve_step_correction_ratio"), "learned {{replica}}"),
                unit="none",
                span=6,
                marks=((0.75, "orange"), (1.25, "orange")),
            )
        )
        .with_panel(
            lines(
                "Step model off",
                "1 while the last 200 steps of a replica took, on average, more than 25 % longer "
                "or shorter than predicted: its promises can't be trusted now. A short 1 is a "
                "spell of the machine; for one that stays see SloserveReplicaStepModelOff in the "
                "runbook.",
                Query(of_replicas("sloserve_step_model_off"), "{{replica}}"),
                unit="none",
                span=6,
                most=1,
            )
        )
        .with_panel(
            heat(
                "Spread of measured over predicted",
                "Whether all steps are a little off, or a few by a lot (stragglers).",
                f"{of_replicas(f'increase(sloserve_step_error_ratio_bucket[{RATE}])')}",
                unit="none",
                span=6,
            )
        )
        .with_panel(
            lines(
                "Planning time, and the worst steps",
                "What a decision costs between two steps, and the 95th percentile of measured over "
                "predicted.",
                Query(quantile(0.99, plans), "planning p99"),
                Query(quantile(0.95, errors), "measured / predicted p95"),
                unit="s",
                span=6,
                right=("measured", "none"),
            )
        )
        .with_row(Row("Slack and speculation"))
        .with_panel(
            lines(
                "Slack of the tightest",
                "Due less emitted, of first and last tokens: all but 5 % and all but 1 % of them "
                "had more. Below 0 promises break.",
                Query(quantile(0.05, slack, "slo_class"), "{{slo_class}} p5"),
                Query(quantile(0.01, slack, "slo_class"), "{{slo_class}} p1"),
                unit="s",
            )
        )
        .with_panel(
            heat(
                "Spread of slack",
                "Whether promises are kept narrowly or with room to spare.",
                of_replicas(f"increase({SLACK}[{RATE}])"),
                unit="s",
                span=8,
            )
        )
        .with_panel(
            lines(
                "Draft tokens",
                "What speculation proposed, by result, per second; much rejected is work wasted.",
                Query(
                    "sum by (result) "
                    f"({of_replicas(f'rate(sloserve_draft_tokens_total[{RATE}])')})",
                    "{{result}}",
                ),
                unit="short",
                stack=True,
            )
        )
    )
