"""Asking for drafts ends where it brings less than it costs, and begins again."""

import pytest

from sloserve.planner.asking import FADE, HOPE, MARGIN, PROPOSE_S, Asking
from sloserve.planner.speculation import Load

STEP_S = 0.008
EIGHT = Load(num_tokens=8, context=1000.0, pairs=0.0)
COST = PROPOSE_S * EIGHT.num_tokens / STEP_S
"""Of asking once, in tokens: 0.01."""


def ask(asking: Asking, group: str, times: int, *, every: int, right: int, drafts: int = 1) -> None:
    """So many times; each `every`-th gets `drafts`, of which `right` are accepted."""
    for number in range(times):
        asking.asked(group)
        if every and number % every == 0:
            asking.came(group, num_drafted=drafts, num_accepted=right, draft_cost=0.1)


def test_hope_asks_at_first_and_nobody_asks_in_vain_for_long() -> None:
    asking = Asking()
    assert asking.gain("warm") == HOPE
    assert asking.pays("warm", EIGHT, step_s=STEP_S)
    ask(asking, "warm", 40, every=0, right=0)
    assert asking.pays("warm", EIGHT, step_s=STEP_S)  # too early to tell
    ask(asking, "warm", 1000, every=0, right=0)
    assert not asking.pays("warm", EIGHT, step_s=STEP_S)


@pytest.mark.parametrize(("every", "pays"), [(10, True), (30, True), (80, False), (400, False)])
def test_asking_must_bring_a_margin_more_than_it_costs(every: int, pays: bool) -> None:
    """A right draft is worth 0.9 tokens here, once in `every` times asked."""
    asking = Asking()
    ask(asking, "warm", 4000, every=every, right=1)
    assert pays == (0.9 / every > MARGIN * COST)
    assert asking.pays("warm", EIGHT, step_s=STEP_S) == pays


def test_wrong_drafts_count_against_asking() -> None:
    asking = Asking()
    ask(asking, "warm", 4000, every=10, right=1, drafts=9)
    assert asking.gain("warm") == pytest.approx((1 - 9 * 0.1) / 10, abs=1e-3)
    ask(asking, "warm", 4000, every=10, right=0, drafts=3)
    assert asking.gain("warm") < 0
    assert not asking.pays("warm", EIGHT, step_s=STEP_S)


def test_what_pays_at_one_stream_need_not_pay_at_eight() -> None:
    asking = Asking()
    ask(asking, "warm", 4000, every=80, right=1)
    assert asking.pays("warm", Load(1, 100.0, 0.0), step_s=0.006)
    assert not asking.pays("warm", EIGHT, step_s=STEP_S)


def test_groups_are_apart_and_a_group_that_gains_again_is_asked_again() -> None:
    asking = Asking()
    ask(asking, "warm", 2000, every=0, right=0)
    assert asking.pays("greedy", EIGHT, step_s=STEP_S)
    ask(asking, "warm", round(1 / (1 - FADE)), every=4, right=3, drafts=4)
    assert asking.pays("warm", EIGHT, step_s=STEP_S)
