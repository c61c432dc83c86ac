"""How many tokens to draft: needs first, then what pays, never longer than there is room."""

from itertools import product
from math import ceil, inf, log

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sloserve.perf import StepModel
from sloserve.planner.acceptance import STARTS, Acceptance
from sloserve.planner.speculation import (
    MIN_GAIN,
    Draftable,
    Load,
    draft_lengths,
    least_chance,
    needed_drafts,
    tokens_due,
    with_trials,
)

FLAT = StepModel(w=0.010, a0=0.00001, c1=0.002, a1=0.0002, b=0.0, d=0.0)
"""Memory-bound up to 42 tokens (10 ms), then every token costs 0.2 ms."""
KNEE = 42


def falling(alpha: float, num: int = 8) -> list[float]:
    return [alpha ** (j + 1) for j in range(num)]


def rows_of(num: int, alpha: float, *, needed: int = 1, context: int = 100) -> list[Draftable]:
    return [Draftable(i, context, falling(alpha), needed) for i in range(num)]


def decodes(rows: list[Draftable], *, room_s: float = inf, max_tokens: int = 10**6) -> Load:
    return Load(len(rows), float(sum(r.context for r in rows)), 0.0, room_s, max_tokens)


def rate(
    rows: list[Draftable], load: Load, model: StepModel, counts: dict[int, int], *, serial: bool
) -> float:
    """Expected tokens per second, straight from the definitions."""
    tokens = load.num_tokens + sum(sum(r.chances[: counts.get(r.id, 0)]) for r in rows)
    keys = sum(r.context + j + 1 for r in rows for j in range(counts.get(r.id, 0)))
    num, longest = sum(counts.values()), max(counts.values(), default=0)
    time_s = model.step_s(
        load.num_tokens + num,
        context=load.context + keys,
        pairs=load.pairs,
        drafts=longest if serial else 0,
    )
    return float(tokens / time_s)


def test_tokens_due_counts_every_token_that_the_next_step_would_bring_too_late() -> None:
    assert tokens_due(1.0, 0.1, by_s=0.99) == 0
    assert tokens_due(1.0, 0.1, by_s=1.0) == 0
    assert tokens_due(1.0, 0.1, by_s=1.05) == 1
    assert tokens_due(1.0, 0.1, by_s=1.25) == 3
    assert tokens_due(1.0, 0.0, by_s=2.0) == 1


@given(
    due_s=st.integers(0, 50),
    tpot_s=st.integers(1, 20),
    by_s=st.integers(0, 120),
)
def test_tokens_due_is_a_count_of_due_times(due_s: int, tpot_s: int, by_s: int) -> None:
    counted = sum(1 for n in range(200) if due_s + n * tpot_s < by_s)
    assert tokens_due(float(due_s), float(tpot_s), by_s=float(by_s)) == counted


@given(st.floats(0.05, 0.95), st.integers(1, 6))
def test_a_need_gets_the_fewest_drafts_whose_expectation_reaches_it(
    alpha: float, needed: int
) -> None:
    chances = falling(alpha, 16)
    num = needed_drafts(chances, needed)

    def expected(n: int) -> float:
        return 1 + sum(chances[:n])

    if expected(num) >= needed:
        assert num == 0 or expected(num - 1) < needed
    else:
        assert expected(len(chances)) < needed  # nothing reaches it: the likely ones


@given(st.floats(0.3, 0.9), st.floats(0.03, 0.2), st.floats(0.03, 0.2), st.integers(1, 6))
def test_needs_agree_with_the_closed_form_for_one_alpha(
    alpha: float, tpot_s: float, other_s: float, length: int
) -> None:
    """
    sl = ceil(log(1 - m (1 - alpha)) / log(alpha)) verified tokens give m on average, from
    Acc(n) = (1 - alpha^n) / (1 - alpha): what the paper gives a tier beside the bottleneck tier.
    """
    target = (1 - alpha**length) / (1 - alpha) * other_s / tpot_s
    inside = 1 - target * (1 - alpha)
    if target <= 1 or inside <= alpha**16:
        return
    closed = log(inside) / log(alpha)
    if abs(closed - round(closed)) < 1e-6:
        return  # on the edge rounding decides
    chances = falling(alpha, 20)
    found = next(n for n in range(21) if 1 + sum(chances[:n]) >= target)
    assert found + 1 == ceil(closed)


def test_before_the_knee_likely_drafts_pay_and_past_it_none_do() -> None:
    few = rows_of(2, 0.8)
    counts = draft_lengths(few, decodes(few), FLAT)
    assert counts
    assert min(counts.values()) >= 4
    many = rows_of(200, 0.9)
    assert draft_lengths(many, decodes(many), FLAT) == {}


def test_drafts_end_at_the_knee() -> None:
    rows = rows_of(16, 0.5)
    counts = draft_lengths(rows, decodes(rows), FLAT)
    assert KNEE - 2 <= len(rows) + sum(counts.values()) <= KNEE + 2
    assert max(counts.values()) - min(counts.values()) <= 1


def test_prefill_tokens_are_worth_as_much_as_sure_tokens() -> None:
    rows = rows_of(4, 0.9)
    full = Load(4 + 300, 400.0, 300 * 150.0)
    assert draft_lengths(rows, full, FLAT) == {}


def test_who_is_accepted_more_often_gets_more() -> None:
    rows = [Draftable(0, 100, falling(0.9)), Draftable(1, 100, falling(0.3))]
    slow = StepModel(w=0.01, a0=0.001, c1=0.0, a1=0.0, b=0.0, d=0.0)
    counts = draft_lengths(rows, decodes(rows), slow)
    assert counts.get(0, 0) > counts.get(1, 0)


def test_a_need_is_met_even_where_drafts_do_not_pay() -> None:
    rows = [*rows_of(200, 0.5), Draftable(999, 100, falling(0.8), num_needed=2)]
    assert draft_lengths(rows, decodes(rows), FLAT) == {999: 2}


def test_nobody_drafts_past_the_room_of_the_step_or_the_batch() -> None:
    rows = rows_of(60, 0.9, needed=3)
    load = decodes(rows, room_s=FLAT.step_s(70))
    counts = draft_lengths(rows, load, FLAT)
    assert 0 < sum(counts.values()) <= 10
    load = decodes(rows, max_tokens=64)
    assert sum(draft_lengths(rows, load, FLAT).values()) == 4
    load = decodes(rows, room_s=FLAT.step_s(60))
    assert draft_lengths(rows, load, FLAT) == {}


def test_a_serial_draft_step_must_be_worth_its_time_for_all() -> None:
    cheap = StepModel(w=0.01, a0=0.0, c1=0.0, a1=0.0, b=0.0, d=0.0, k2=0.001)
    dear = StepModel(w=0.01, a0=0.0, c1=0.0, a1=0.0, b=0.0, d=0.0, k2=0.02)
    rows = rows_of(4, 0.8)
    assert max(draft_lengths(rows, decodes(rows), cheap, serial=True).values()) >= 3
    assert draft_lengths(rows, decodes(rows), dear, serial=True) == {}


def test_steps_that_take_longer_than_the_model_says_get_no_drafts() -> None:
    rows = rows_of(2, 0.2)
    assert draft_lengths(rows, decodes(rows), FLAT)
    assert draft_lengths(rows, decodes(rows), FLAT, factor=1.4) == {}


@given(
    alphas=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
    w=st.floats(0.001, 0.02),
    a0=st.floats(0.0, 0.002),
    a1=st.floats(0.0, 0.004),
    b=st.floats(0.0, 1e-5),
    k2=st.sampled_from([0.0, 0.001, 0.01]),
)
def test_no_choice_of_lengths_yields_much_more(
    alphas: list[float], w: float, a0: float, a1: float, b: float, k2: float
) -> None:
    model = StepModel(w=w, a0=a0, c1=0.001, a1=a1, b=b, d=0.0, k2=k2)
    rows = [Draftable(i, 50 * i, falling(alpha, 3)) for i, alpha in enumerate(alphas)]
    load, serial = decodes(rows), k2 > 0
    counts = draft_lengths(rows, load, model, serial=serial)
    best = max(
        rate(rows, load, model, dict(enumerate(lengths)), serial=serial)
        for lengths in product(range(4), repeat=len(rows))
    )
    found = rate(rows, load, model, counts, serial=serial)
    assert found * (1 + MIN_GAIN) * 1.02 >= best  # a small gain is left alone
    assert found >= rate(rows, load, model, {}, serial=serial) - 1e-9


@given(
    alphas=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    w=st.floats(0.001, 0.02),
    a1=st.floats(0.0, 0.004),
    b=st.floats(0.0, 1e-5),
    factor=st.floats(1.0, 1.3),
)
def test_who_is_left_out_as_hopeless_would_have_got_nothing(
    alphas: list[float], w: float, a1: float, b: float, factor: float
) -> None:
    model = StepModel(w=w, a0=0.0, c1=0.001, a1=a1, b=b, d=0.0)
    rows = [Draftable(i, 50 + 50 * i, falling(alpha, 3)) for i, alpha in enumerate(alphas)]
    load = decodes(rows)
    least = least_chance(load, model, context=50)
    counts = draft_lengths(rows, load, model, factor=factor)
    if all(row.chances[0] < least for row in rows):
        assert counts == {}


@given(
    data=st.lists(
        st.tuples(st.floats(0.01, 0.99), st.integers(0, 8), st.integers(1, 5)),
        min_size=1,
        max_size=12,
    ),
    room_s=st.floats(0.0, 0.05),
    max_tokens=st.integers(1, 60),
    serial=st.booleans(),
)
def test_lengths_stay_within_chances_room_and_batch(
    data: list[tuple[float, int, int]], room_s: float, max_tokens: int, serial: bool
) -> None:
    model = StepModel(w=0.01, a0=0.0003, c1=0.0, a1=0.001, b=1e-6, d=0.0, k2=0.0005)
    rows = [
        Draftable(i, 10, falling(alpha, num), needed) for i, (alpha, num, needed) in enumerate(data)
    ]
    load = decodes(rows, room_s=room_s, max_tokens=max_tokens)
    counts = draft_lengths(rows, load, model, serial=serial)
    assert all(0 < counts[i] <= len(rows[i].chances) for i in counts)
    if counts:
        keys = sum(10 + j + 1 for count in counts.values() for j in range(count))
        num = sum(counts.values())
        longest = max(counts.values()) if serial else 0
        context = load.context + keys
        assert model.step_s(len(rows) + num, context=context, drafts=longest) <= room_s + 1e-12
        assert len(rows) + num <= max_tokens


@given(
    contexts=st.dictionaries(st.integers(0, 20), st.integers(1, 500), max_size=12),
    drafted=st.lists(st.integers(1, 6), max_size=12),
    room_s=st.floats(0.0, 0.05),
    max_tokens=st.integers(1, 60),
    serial=st.booleans(),
)
def test_a_trial_for_the_others_is_added_as_far_as_there_is_room(
    contexts: dict[int, int], drafted: list[int], room_s: float, max_tokens: int, serial: bool
) -> None:
    model = StepModel(w=0.01, a0=0.0003, c1=0.0, a1=0.001, b=1e-6, d=0.0, k2=0.0005)
    load = Load(len(contexts), float(sum(contexts.values())), 0.0, room_s, max_tokens)
    counts = dict(zip(contexts, drafted, strict=False))
    found = with_trials(counts, contexts, load, model, serial=serial)
    tried = [row_id for row_id in contexts if row_id not in counts and row_id in found]
    left = [row_id for row_id in contexts if row_id not in found]
    assert found == counts | dict.fromkeys(tried, 1)

    def fits(counts: dict[int, int]) -> bool:
        num = sum(counts.values())
        keys = sum(contexts[i] + j + 1 for i, count in counts.items() for j in range(count))
        longest = max(counts.values()) if serial else 0
        time_s = model.step_s(len(contexts) + num, context=load.context + keys, drafts=longest)
        return time_s <= room_s and len(contexts) + num <= max_tokens

    assert not tried or fits(found)
    assert not left or not fits({**found, left[0]: 1})


# --- acceptance -------------------------------------------------------------------------------


def test_chances_start_hopeful_and_never_rise_with_position() -> None:
    for grade, start in ((0, STARTS[0]), (1, STARTS[1]), (2, STARTS[2]), (3, STARTS[0])):
        chances = Acceptance().chances(1, "chat", grade=grade, num=4)
        assert chances == pytest.approx([start, start**2, start**3, start**4])


def test_a_request_is_learned_per_position() -> None:
    seen = Acceptance()
    for _ in range(60):
        seen.observe(1, "chat", grade=3, num_drafted=3, num_accepted=1)
    first, second, third = seen.chances(1, "chat", grade=3, num=3)
    assert first > 0.9
    assert second < 0.1 * first
    assert third < second


def test_requests_differ_and_a_new_one_begins_as_its_group() -> None:
    seen = Acceptance()
    for _ in range(40):
        seen.observe(1, "chat", grade=2, num_drafted=1, num_accepted=1)
        seen.observe(2, "chat", grade=2, num_drafted=1, num_accepted=0)
    (good,) = seen.chances(1, "chat", grade=2, num=1)
    (bad,) = seen.chances(2, "chat", grade=2, num=1)
    (new,) = seen.chances(3, "chat", grade=2, num=1)
    assert good > 0.8 > new > 0.2 > bad
    assert seen.chances(3, "chat", grade=1, num=1) == [STARTS[1]]
    assert seen.chances(3, "other", grade=2, num=1) == [STARTS[2]]


def test_what_was_true_is_forgotten_when_an_answer_changes() -> None:
    seen = Acceptance()
    for _ in range(100):
        seen.observe(1, "chat", grade=1, num_drafted=1, num_accepted=1)
    for _ in range(30):
        seen.observe(1, "chat", grade=1, num_drafted=1, num_accepted=0)
    assert seen.chances(1, "chat", grade=1, num=1)[0] < 0.2
    low = seen.chances(1, "chat", grade=1, num=1)[0]
    seen.observe(2, "chat", grade=1, num_drafted=1, num_accepted=1)
    for _ in range(200):
        seen.idle(1)
    assert seen.chances(1, "chat", grade=1, num=1)[0] > low
    seen.forget(1)
    assert seen.chances(1, "chat", grade=1, num=1) == seen.chances(9, "chat", grade=1, num=1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_the_estimate_settles_near_the_truth(alpha: float) -> None:
    import random

    dice, seen = random.Random(3), Acceptance()
    found = []
    for _ in range(2000):
        accepted = next((j for j in range(4) if dice.random() >= alpha), 4)
        seen.observe(1, "chat", grade=3, num_drafted=4, num_accepted=accepted)
        found.append(seen.chances(1, "chat", grade=3, num=1)[0])
    assert abs(sum(found[200:]) / len(found[200:]) - alpha) < 0.05
