"""How each replica feels: what it would still promise, its memory, its queue."""

from dashboards.panels import RATE, Column, Query, board, grid, lines, of_replicas
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

IN_CLASS = 'slo_class=~"$slo_class"'


def replicas() -> Dashboard:
    """One line per replica."""
    used = 'sloserve_kv_blocks{state="used"} / ignoring (state) '
    used += "(sum without (state) (sloserve_kv_blocks) > 0)"
    by, by_state = "by (namespace, service, replica)", "by (namespace, service, replica, state)"
    generation = (
        "sloserve_config_generation * on (job, instance) group_left (state) "
        "(sloserve_replica_state == 1)"
    )
    requests = "increase(sloserve_replica_requests_total[1h])"
    hits = f"rate(vllm:prefix_cache_hits_total[{RATE}])"
    looked_up = f"rate(vllm:prefix_cache_queries_total[{RATE}])"
    return (
        board(
            "replicas",
            "Replicas",
            "What each replica would still promise, and what keeps it from promising more.",
            "namespace",
            "service",
            "slo_class",
            "replica",
        )
        .with_row(Row("Feasibility"))
        .with_panel(
            lines(
                "Frontier",
                "The longest prompt that would be admitted now, per class; 0: none would.",
                Query(
                    of_replicas(f'sloserve_frontier_prompt_tokens{{{IN_CLASS}, bound="max"}}'),
                    "{{replica}} {{slo_class}}",
                ),
                unit="short",
            )
        )
        .with_panel(
            lines(
                "Earliest first token",
                "When a prompt of the class's usual length would get its first token, from now.",
                Query(
                    of_replicas(f"sloserve_earliest_first_token_seconds{{{IN_CLASS}}}"),
                    "{{replica}} {{slo_class}}",
                ),
                unit="s",
            )
        )
        .with_panel(
            lines(
                "Token supply and tightest TPOT",
                "Tokens per second that are left beside what is promised, and (right) the tightest "
                "TPOT that runs: one tight request slows what all others may get.",
                Query(of_replicas("sloserve_token_supply_per_second"), "tokens/s {{replica}}"),
                Query(of_replicas("sloserve_tightest_tpot_seconds"), "TPOT {{replica}}"),
                unit="short",
                right=("TPOT", "s"),
            )
        )
        .with_row(Row("Memory and queue"))
        .with_panel(
            lines(
                "KV blocks in use",
                "Share of the KV cache; near 100 % newcomers wait for memory.",
                Query(of_replicas(used), "{{replica}}"),
                unit="percentunit",
                most=1,
            )
        )
        .with_panel(
            lines(
                "Running and waiting",
                "Requests in the engine, and those that wait for admission.",
                Query(of_replicas("sloserve_running_requests"), "{{replica}} running"),
                Query(of_replicas("sloserve_waiting_requests"), "{{replica}} waiting"),
                unit="short",
            )
        )
        .with_panel(
            lines(
                "Prefill ahead",
                "Prompt tokens of admitted and waiting requests that are not computed yet.",
                Query(of_replicas("sloserve_waiting_prefill_tokens"), "{{replica}}"),
                unit="short",
            )
        )
        .with_row(Row("Health"))
        .with_panel(
            grid(
                "Who is there",
                "State of each replica, the manifest's generation it serves, and the requests it "
                "saw in the last hour.",
                Column("Generation", f"max {by_state} ({of_replicas(generation)})", "none"),
                Column("Requests, 1 h", f"sum {by} ({of_replicas(requests)})", "short"),
                Column("Devices", f"sum {by} ({of_replicas('sloserve_replica_devices')})", "none"),
                labels={
                    "namespace": "Namespace",
                    "service": "Service",
                    "replica": "Replica",
                    "state": "State",
                },
                sort="Replica",
                descending=False,
                span=12,
            )
        )
        .with_panel(
            lines(
                "Prefix cache",
                "Share of prompt tokens that were already in the KV cache.",
                Query(of_replicas(f"{hits} / ({looked_up} > 0)"), "{{replica}}"),
                unit="percentunit",
                span=6,
                most=1,
            )
        )
        .with_panel(
            lines(
                "Way out",
                "99th percentile of the time from a token's emission to its write to the client; "
                "the planner subtracts it.",
                Query(of_replicas("sloserve_emission_lag_seconds"), "{{replica}}"),
                unit="s",
                span=6,
            )
        )
    )
