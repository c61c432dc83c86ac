"""What the rules say of healthy, burning, idle, restarted and new classes: judged by promtool."""

from typing import Any

import pytest

FIRING = 'sum by (alertname) (ALERTS{alertstate="firing", slo_class!="all"})'
SILENCE = 'sum by (alertname) (ALERTS{alertstate="firing", slo_class="all"})'
FAST, SLOW = '{alertname="SloserveFastBurn"}', '{alertname="SloserveSlowBurn"}'
PER_MINUTE = 100_000
"""Requests; so many that every share of them is a whole number."""


def labels(slo_class: str = "chat", *, instance: str = "a") -> str:
    return f'service="assistant", model="m", slo_class="{slo_class}", instance="{instance}"'


def counters(
    *phases: tuple[int, float], slo_class: str = "chat", instance: str = "a", start: str = ""
) -> dict[str, str]:
    """
    Counters of one gateway: `phases` of (minutes, share missed); a share of -1 means idle.

    `start` goes before them, as "_x20" (not there yet).
    """
    total, kept, all_, good = 0, 0, [start], [start]
    for minutes, missed in phases:
        step = 0 if missed < 0 else PER_MINUTE
        good_step = round(step * (1 - missed)) if step else 0
        all_.append(f"{total}+{step}x{minutes - 1}")
        good.append(f"{kept}+{good_step}x{minutes - 1}")
        total, kept = total + step * minutes, kept + good_step * minutes
    who = labels(slo_class, instance=instance)
    return {
        f"sloserve_slo_requests_total{{{who}}}": " ".join(all_).strip(),
        f'sloserve_slo_attained_total{{{who}, promise="all"}}': " ".join(good).strip(),
    }


@pytest.mark.parametrize("percent", [90, 95, 99, 99.9])
def test_budgets_burn_fast_slowly_or_not_at_all(judge: Any, groups_of: Any, percent: float) -> None:
    allowed = 1 - percent / 100
    fast = min(20 * allowed, 0.95)
    judge(
        groups_of({"chat": str(percent)}),
        [
            {
                "name": "healthy: half of the budget",
                "series": counters((60, allowed / 2)),
                "expect": [(m, FIRING, {}) for m in (3, 20, 59)],
            },
            {
                "name": "fast burn: fires within minutes, ends when it is over",
                "series": counters((30, allowed / 2), (15, fast), (30, 0.0)),
                "expect": [
                    (29, FIRING, {}),
                    (44, FIRING, {FAST: 1, SLOW: 1}),
                    (60, f'{FIRING} and on () ALERTS{{alertname="SloserveFastBurn"}}', {}),
                ],
            },
            {
                "name": "slow burn: a ticket, no page",
                "series": counters((60, 4 * allowed)),
                "expect": [(30, FIRING, {SLOW: 1}), (59, FIRING, {SLOW: 1})],
            },
            {
                "name": "idle from the start: nothing is said of the class",
                "series": counters((60, -1)),
                "expect": [
                    (59, FIRING, {}),
                    (59, SILENCE, {}),
                    (59, "slo:sli_error:ratio_rate5m", {}),
                ],
            },
            {
                "name": "counter reset: a gateway restarts while all is well",
                "series": {
                    f"sloserve_slo_requests_total{{{labels()}}}": "0+1000x29 0+1000x29",
                    f'sloserve_slo_attained_total{{{labels()}, promise="all"}}': (
                        "0+1000x29 0+1000x29"
                    ),
                },
                "expect": [(m, FIRING, {}) for m in (29, 30, 31, 35, 59)],
            },
            {
                "name": "class added at run time, and healthy",
                "series": counters((30, allowed / 2), start="_x20"),
                "expect": [(m, FIRING, {}) for m in (19, 20, 21, 22, 30, 49)],
            },
            {
                "name": "class added at run time, and burning",
                "series": counters((30, fast), start="_x20"),
                "expect": [(20, FIRING, {}), (40, FIRING, {FAST: 1, SLOW: 1})],
            },
        ],
    )


def test_recorded_ratios_are_those_of_the_counters(judge: Any, groups_of: Any) -> None:
    identity = (
        'service="assistant", slo_class="chat", sloth_id="assistant-chat", '
        'sloth_service="assistant", sloth_slo="chat"'
    )
    series = {**counters((60, 0.02)), **counters((60, 0.04), instance="b")}
    judge(
        groups_of({"chat": 99}),
        [
            {
                "name": "two gateways",
                "series": series,
                "expect": [
                    (
                        59,
                        "round(slo:sli_error:ratio_rate5m, 1e-6)",
                        {f'{{{identity}, sloth_window="5m"}}': 0.03},
                    ),
                    (59, "round(slo:current_burn_rate:ratio, 1e-6)", {f"{{{identity}}}": 3}),
                    (
                        59,
                        "round(slo:period_error_budget_remaining:ratio, 1e-6)",
                        {f"{{{identity}}}": -2},
                    ),
                    (59, "slo:objective:ratio", {f"slo:objective:ratio{{{identity}}}": 0.99}),
                    (59, "slo:time_period:days", {f"slo:time_period:days{{{identity}}}": 7}),
                ],
            }
        ],
    )


def test_a_few_misses_among_few_requests_wake_nobody(judge: Any, groups_of: Any) -> None:
    def trickle(missed_at: int) -> dict[str, str]:
        kept = f"0+1x{missed_at - 1} {missed_at - 1}+1x{59 - missed_at}"
        return {
            f"sloserve_slo_requests_total{{{labels()}}}": "0+1x59",
            f'sloserve_slo_attained_total{{{labels()}, promise="all"}}': kept,
        }

    judge(
        groups_of({"chat": 99.9}),
        [
            {
                "name": "one request a minute, one of them missed: 67 times the budget in 15 min",
                "series": trickle(30),
                "expect": [(m, FIRING, {}) for m in (30, 31, 35, 45, 59)],
            },
            {
                "name": "one request a minute, all missed: somebody must look",
                "series": {
                    f"sloserve_slo_requests_total{{{labels()}}}": "0+1x59",
                    f'sloserve_slo_attained_total{{{labels()}, promise="all"}}': "0x59",
                },
                "expect": [(40, FIRING, {FAST: 1, SLOW: 1})],
            },
        ],
    )


def test_silence_where_there_was_traffic_is_told(judge: Any, groups_of: Any) -> None:
    judge(
        groups_of({"chat": 99}),
        [
            {
                "name": "an hour of traffic, then none",
                "series": counters((60, 0.0), (120, -1)),
                "expect": [
                    (59, SILENCE, {}),
                    (80, SILENCE, {}),
                    (100, SILENCE, {'{alertname="SloserveNoTraffic"}': 1}),
                    (100, FIRING, {}),
                ],
            },
            {
                "name": "no counters at all",
                "series": {"up": "1x60"},
                "expect": [
                    (5, SILENCE, {}),
                    (12, SILENCE, {'{alertname="SloserveMetricsMissing"}': 1}),
                ],
            },
        ],
    )


def test_a_page_says_whose_it_is_and_what_binds(judge: Any, groups_of: Any) -> None:
    missed = f"sloserve_slo_missed_total{{{labels()}, reason="
    judge(
        groups_of({"chat": 99}),
        [
            {
                "name": "KV is what binds",
                "series": {
                    **counters((30, 0.5)),
                    f'{missed}"KV"}}': "0+40000x29",
                    f'{missed}"TTFT"}}': "0+10000x29",
                },
                "expect": [],
                "alerts": [
                    {
                        "eval_time": "20m",
                        "alertname": "SloserveFastBurn",
                        "exp_alerts": [
                            {
                                "exp_labels": {
                                    "service": "assistant",
                                    "slo_class": "chat",
                                    "severity": "critical",
                                    "sloth_severity": "page",
                                },
                                "exp_annotations": {
                                    "summary": "assistant: class chat breaks too many promises",
                                    "description": (
                                        "50% of the requests missed their promise; 99 % shall "
                                        "keep it. Fires at: 14.4 % missed over 15m and 5m, a burn "
                                        "rate of 14.4, 2.14 % of the budget of 7d; 6 % missed over "
                                        "90m and 10m, a burn rate of 6, 5.36 % of the budget of 7d."
                                    ),
                                    "constraint": "KV",
                                    "runbook_url": "docs/runbook.md#sloservefastburn",
                                    "dashboard": "/d/sloserve-slo?var-service=assistant",
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    )
