"""The interval of prompt lengths that would be admitted now."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.planner import Policy, Probe, Row, Snapshot
from sloserve.planner.frontier import interval
from sloserve.planner.policies import POLICIES, make_policy


def a_probe(**changes: float) -> Probe:
    values: dict[str, float] = {
        "ttft_fixed_s": 1.0,
        "ttft_per_token_s": 0.0,
        "ttft_per_pair_s": 0.0,
        "ttft_floor_s": 0.0,
        "tpot_s": 0.05,
        "tightest_tpot_s": 0.05,
        "expected_output": 100.0,
        "expected_sd": 50.0,
    }
    values.update(changes)
    return Probe(slo_class="chat", max_prompt=8192, **values)


@given(low=st.integers(1, 4000), width=st.integers(0, 8000))
def test_the_interval_lies_inside_what_is_admitted(low: int, width: int) -> None:
    asked: list[int] = []

    def admits(n: int) -> bool:
        asked.append(n)
        return low <= n <= low + width

    found = interval(admits, 8192)
    assert len(asked) <= 20
    if found.max_tokens >= found.min_tokens:
        assert low <= found.min_tokens <= found.max_tokens <= low + width
    if width >= 4 * low:  # wide enough that the grid must hit it
        assert found.max_tokens >= min(8192, low + width) * 0.9
        assert found.min_tokens <= low * 1.1 + 1


def test_an_idle_replica_admits_every_prompt_that_fits_its_ttft(
    a_snapshot: Callable[..., Snapshot],
) -> None:
    frontier = make_policy("sloserve").frontier(a_snapshot(), a_probe())
    assert frontier.min_tokens == 1
    assert 5000 < frontier.max_tokens < 8192  # 1 s is about 6500 tokens on that machine


def test_under_a_slowdown_short_prompts_may_have_no_time_to_wait(
    a_snapshot: Callable[..., Snapshot], a_row: Callable[..., Row]
) -> None:
    busy = [
        a_row(
            i,
            num_known=300,
            num_computed=299,
            num_output=1,
            anchored=True,
            due_s=0.04,
            tpot_s=0.2,
            running=True,
            num_blocks=19,
        )
        for i in range(150)
    ]  # all of them must be in the next step, which takes 18 ms with nothing else in it
    probe = a_probe(ttft_fixed_s=0.01, ttft_per_token_s=4e-4)
    frontier = make_policy("sloserve").frontier(a_snapshot(busy), probe)
    assert frontier.min_tokens > 15
    assert frontier.max_tokens > frontier.min_tokens


def test_what_the_frontier_holds_is_admitted(
    a_snapshot: Callable[..., Snapshot], a_row: Callable[..., Row]
) -> None:
    running = [a_row(i, num_known=1500, due_s=0.7, running=True, num_blocks=95) for i in range(4)]
    policy = make_policy("sloserve")
    frontier = policy.frontier(a_snapshot(running), a_probe())
    for length, inside in ((frontier.max_tokens, True), (2 * frontier.max_tokens, False)):
        row = a_row(99, num_known=length, may_wait=False, expected_output=100.0, max_output=150)
        plan = make_policy("sloserve").plan(a_snapshot(running, [row]))
        assert (99 in plan.admitted) is inside


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers(name: str, a_snapshot: Callable[..., Snapshot]) -> None:
    policy: Policy = make_policy(name)
    assert policy.name == name
    assert policy.frontier(a_snapshot(), a_probe()).contains(100)
