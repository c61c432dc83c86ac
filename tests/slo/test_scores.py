"""Four ways of judging one answer, on examples worked by hand, and what must hold of each."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sloserve.slo import (
    NOTHING_CAME,
    Bank,
    Emission,
    Promise,
    Scores,
    Stage,
    score,
    score_whole,
)

CHAT = Promise("chat", 1.0, (Stage("decode", 0.1),))
REASON = Promise("reason", 1.0, (Stage("thinking", 0.05), Stage("answer", 0.2)))


def judged(*times_s: float, promise: Promise = CHAT, arrival_s: float = 0.0) -> Scores:
    return score(promise, arrival_s=arrival_s, emissions=[Emission(at_s) for at_s in times_s])


def even(first_s: float, gap_s: float, num_tokens: int) -> list[float]:
    return [first_s + gap_s * i for i in range(num_tokens)]


def test_a_steady_answer_in_time_is_kept_by_every_score() -> None:
    scores = judged(*even(0.8, 0.0999, 50))
    assert scores.strict
    assert scores.ttft_kept
    assert scores.tpot_kept
    assert scores.paper
    assert scores.mean_tpot
    assert scores.ttft_s == pytest.approx(0.8)
    assert scores.mean_tpot_s == pytest.approx(0.0999)
    assert scores.p99_gap_s == pytest.approx(0.0999)
    assert scores.num_tokens == 50


def test_a_late_first_token_breaks_strict_and_mean_but_not_the_paper_within_five_percent() -> None:
    scores = judged(*even(1.04, 0.05, 10))
    assert not scores.ttft_kept
    assert not scores.strict
    assert not scores.mean_tpot
    assert scores.tpot_kept
    assert scores.paper
    assert not judged(*even(1.06, 0.05, 10)).paper


def test_one_late_token_in_the_middle_breaks_only_strict() -> None:
    times_s = even(0.5, 0.08, 40)
    times_s[9] = 1.45  # due at 0.5 + 0.9 = 1.40, then the rest is on time again
    times_s[10:] = [max(t, 1.45) for t in times_s[10:]]
    scores = judged(*times_s)
    assert not scores.strict
    assert not scores.tpot_kept
    assert scores.ttft_kept
    assert scores.paper  # looked at token 20 and 40 only
    assert scores.mean_tpot


def test_the_paper_s_origin_is_the_promise_when_the_first_token_is_early() -> None:
    times_s = even(0.2, 0.1, 10)
    times_s[-1] = 1.8  # after 0.2 + 0.9, before 1.0 + 0.9
    scores = judged(*times_s)
    assert not scores.strict
    assert not scores.mean_tpot
    assert scores.paper


def test_the_paper_forgives_five_percent_of_the_budget_and_no_more() -> None:
    assert judged(*even(1.0, 0.1049, 21)).paper
    assert not judged(*even(1.0, 0.1051, 21)).paper


def test_the_paper_looks_every_twenty_tokens() -> None:
    times_s = even(1.0, 0.1, 45)
    times_s[19] = 3.1  # token 20: 2.1 s after the origin, allowed 1.05 * 1.9
    times_s[20:] = [max(t, 3.1) for t in times_s[20:]]
    assert not judged(*times_s).paper
    times_s = even(1.0, 0.1, 45)
    times_s[18] = 3.1  # token 19 is not looked at; token 20 comes at 3.1 too late as well
    times_s[19:] = [max(t, 2.9) for t in times_s[19:]]
    assert judged(*times_s).paper


def test_the_mean_is_taken_from_the_first_token_to_the_last() -> None:
    assert judged(0.1, 0.15, 0.3).mean_tpot  # 0.1 s a token
    assert not judged(0.1, 0.15, 0.31).mean_tpot


def test_the_gap_at_the_99th_percentile_ignores_one_in_a_hundred() -> None:
    times_s = even(0.5, 0.01, 101)  # 100 gaps
    times_s[-1] += 5
    assert judged(*times_s).p99_gap_s == pytest.approx(0.01)
    times_s[-2] += 5
    times_s[-1] += 5
    assert judged(*times_s).p99_gap_s == pytest.approx(5.01)


def test_each_stage_is_judged_by_its_own_pace() -> None:
    def answer(gap_s: float) -> Scores:
        thinking = [Emission(1.0 + 0.05 * i, stage=0) for i in range(10)]
        rest = [Emission(1.45 + gap_s * (i + 1), stage=1) for i in range(10)]
        return score(REASON, arrival_s=0, emissions=thinking + rest)

    kept, broken = answer(0.199), answer(0.22)
    assert kept.strict
    assert kept.paper
    assert kept.mean_tpot
    assert not broken.strict
    assert not broken.paper
    assert not broken.mean_tpot


def test_tokens_that_become_visible_together_count_one_by_one() -> None:
    scores = score(
        CHAT, arrival_s=0, emissions=[Emission(0.5), Emission(0.61, num_tokens=2), Emission(0.7)]
    )
    assert scores.num_tokens == 4
    assert not scores.strict  # token 2 was due at 0.6


def test_one_token_is_judged_by_its_ttft_alone() -> None:
    scores = judged(0.9)
    assert scores.strict
    assert scores.paper
    assert scores.mean_tpot
    assert scores.tpot_kept
    assert scores.mean_tpot_s is None
    assert scores.p99_gap_s is None


def test_an_answer_that_never_came_is_missed() -> None:
    assert judged() == NOTHING_CAME
    assert not NOTHING_CAME.strict
    assert not NOTHING_CAME.ttft_kept


def test_a_whole_answer_is_judged_when_it_is_there() -> None:
    assert score_whole(CHAT, arrival_s=0, done_s=1.9, stages=[0] * 10).strict
    assert not score_whole(CHAT, arrival_s=0, done_s=1.91, stages=[0] * 10).strict
    assert not score_whole(CHAT, arrival_s=0, done_s=0.1, stages=[]).strict


GAPS = st.lists(st.floats(0.0, 0.2), max_size=120)


def times_of(first_s: float, gaps_s: list[float]) -> list[float]:
    times_s = [first_s]
    for gap_s in gaps_s:
        times_s.append(times_s[-1] + gap_s)
    return times_s


@given(st.floats(0, 1.0), st.lists(st.floats(0.0, 0.11), max_size=120), st.floats(0, 1e6))
def test_a_promise_kept_strictly_from_its_first_token_also_keeps_the_other_scores(
    first_s: float, gaps_s: list[float], arrival_s: float
) -> None:
    scores = judged(*times_of(arrival_s + first_s, gaps_s), arrival_s=arrival_s)
    assume(scores.strict)
    assert scores.mean_tpot
    assert scores.paper


@given(st.floats(0, 1.0), st.lists(st.floats(0.0, 0.1), max_size=120))
def test_an_answer_that_never_falls_behind_its_pace_is_kept(
    first_s: float, gaps_s: list[float]
) -> None:
    assert judged(*times_of(first_s, [0.999 * gap_s for gap_s in gaps_s])).strict


@given(
    st.floats(0, 1.2),
    GAPS,
    st.floats(1, 3),
    st.floats(1, 3),
    st.sampled_from(Bank),
)
def test_a_looser_promise_is_never_harder_to_keep(
    first_s: float, gaps_s: list[float], ttft_times: float, tpot_times: float, bank: Bank
) -> None:
    tight = Promise("tight", 1.0, (Stage("decode", 0.1),), bank=bank)
    loose = Promise("loose", ttft_times, (Stage("decode", 0.1 * tpot_times),), bank=bank)
    times_s = times_of(first_s, gaps_s)
    by_tight, by_loose = judged(*times_s, promise=tight), judged(*times_s, promise=loose)
    assert by_tight.strict <= by_loose.strict
    assert by_tight.paper <= by_loose.paper
    assert by_tight.mean_tpot <= by_loose.mean_tpot


@given(
    st.floats(0, 1.2),
    st.lists(st.floats(0.0, 0.2), min_size=1, max_size=120),
    st.integers(0, 119),
    st.floats(0, 1),
)
def test_a_later_token_that_comes_sooner_never_hurts(
    first_s: float, gaps_s: list[float], pick: int, share: float
) -> None:
    times_s = times_of(first_s, gaps_s)
    place = 1 + pick % len(gaps_s)
    sooner_s = list(times_s)
    sooner_s[place] = times_s[place - 1] + share * (times_s[place] - times_s[place - 1])
    assert judged(*times_s).strict <= judged(*sooner_s).strict
    assert judged(*times_s).paper <= judged(*sooner_s).paper
    assert judged(*times_s).mean_tpot <= judged(*sooner_s).mean_tpot
