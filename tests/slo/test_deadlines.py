"""When each token is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve.slo import Bank, Promise, SloClass, Stage, TokenDeadlines, Ttft, answer_due_s


def a_promise(ttft_s: float = 1.0, *tpots_s: float, bank: Bank = Bank.FIRST_TOKEN) -> Promise:
    stages = tuple(Stage(f"s{i}", tpot_s) for i, tpot_s in enumerate(tpots_s or (0.1,)))
    return Promise("chat", ttft_s, stages, bank=bank)


def test_the_first_token_is_due_a_ttft_after_the_arrival() -> None:
    assert TokenDeadlines(a_promise(1.0), arrival_s=10).due_s == 11


def test_an_early_first_token_anchors_the_rest() -> None:
    deadlines = TokenDeadlines(a_promise(1.0, 0.1), arrival_s=10)
    assert deadlines.emit(10.2)
    assert deadlines.due_s == pytest.approx(10.3)


def test_with_the_promise_as_bank_an_early_first_token_earns_slack() -> None:
    deadlines = TokenDeadlines(a_promise(1.0, 0.1, bank=Bank.PROMISE), arrival_s=10)
    assert deadlines.emit(10.2)
    assert deadlines.due_s == pytest.approx(11.1)


def test_running_ahead_banks_slack_for_a_later_gap() -> None:
    deadlines = TokenDeadlines(a_promise(1.0, 0.1), arrival_s=0)
    assert all(deadlines.emit(at_s) for at_s in (0.5, 0.51, 0.52, 0.53))
    assert deadlines.emit(0.89)  # token 5 is due at 0.5 + 4 * 0.1
    assert deadlines.kept


def test_one_late_token_breaks_the_promise_for_good() -> None:
    deadlines = TokenDeadlines(a_promise(1.0, 0.1), arrival_s=0)
    assert deadlines.emit(0.5)
    assert not deadlines.emit(0.61)
    assert deadlines.emit(0.62)
    assert not deadlines.kept


def test_each_stage_has_its_own_pace() -> None:
    deadlines = TokenDeadlines(a_promise(1.0, 0.05, 0.2), arrival_s=0)
    deadlines.emit(1.0, stage=0)
    assert deadlines.due_s == pytest.approx(1.05)
    deadlines.emit(1.05, stage=0, next_stage=1)  # the marker: the answer begins
    assert deadlines.due_s == pytest.approx(1.25)
    deadlines.emit(1.25, stage=1)
    assert deadlines.kept


def test_the_wait_for_the_last_stage_s_pace_goes_on_past_it() -> None:
    assert a_promise(1.0, 0.05, 0.2).tpot_s(7) == 0.2


def test_a_whole_answer_is_due_after_the_sum_of_its_tokens() -> None:
    promise = a_promise(1.0, 0.05, 0.2)
    assert answer_due_s(promise, arrival_s=10, stages=[0, 0, 1]) == pytest.approx(11.25)


def test_a_slowdown_is_resolved_by_the_prompt_and_never_below_its_floor() -> None:
    ttft = Ttft(slowdown=5, floor_s=0.2)
    assert ttft.resolve_s(0.1) == 0.5
    assert ttft.resolve_s(0.01) == 0.2


def test_the_zero_load_time_is_asked_only_for_a_slowdown() -> None:
    def never() -> float:
        raise AssertionError("asked")

    fixed = SloClass("chat", Ttft(target_s=0.5), (Stage("decode", 0.1),))
    assert fixed.offer().promise(never).ttft_s == 0.5
    relative = SloClass("chat", Ttft(slowdown=3), (Stage("decode", 0.1),))
    assert relative.offer().promise(lambda: 0.1).ttft_s == pytest.approx(0.3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from(Bank))
def test_due_times_follow_from_their_definition(gaps_s: list[float], bank: Bank) -> None:
    promise = a_promise(0.5, 0.1, bank=bank)
    deadlines = TokenDeadlines(promise, arrival_s=3.0)
    at_s = 3.0
    first_s = None
    for n, gap_s in enumerate(gaps_s, start=1):
        at_s += gap_s
        anchor_s = 3.5 if bank is Bank.PROMISE or first_s is None else first_s
        due_s = anchor_s + 0.1 * (n - 1)
        assert deadlines.due_s == pytest.approx(due_s)
        deadlines.emit(at_s)
        first_s = at_s if first_s is None else first_s
