"""The error budget: every request once, whatever happens to pods and operators."""

import random
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloserve_operator.budget import (
    Book,
    Counted,
    Heard,
    entered,
    opened,
    parse_counted,
    remaining,
    trimmed,
)
from sloserve_operator.reports import ClassReport, GatewayReport, Tally

TODAY = date(2026, 11, 21)


def heard(uid: str, total: int, attained: int, *, restarts: int = 0,
          noted: Counted | None = None) -> Heard:  # fmt: skip
    classes = {"chat": ClassReport("chat", since_start=Tally(total, attained))}
    report = GatewayReport("s", 1, False, 0, 0, classes, ())
    return Heard(uid, restarts, noted, report)


def enter(book: Book, *told: Heard, today: date = TODAY) -> Book:
    return entered(book, told, today=today, classes=["chat"])


def test_counters_of_several_gateways_are_entered_once() -> None:
    book = enter(Book(), heard("a", 10, 9), heard("b", 5, 5))
    book = enter(book, heard("a", 10, 9), heard("b", 7, 6))
    assert book.class_total("chat") == Tally(17, 15)


def test_a_gateway_that_started_anew_counts_from_zero() -> None:
    book = enter(Book(), heard("a", 10, 9))
    assert enter(book, heard("a", 3, 3, restarts=1)).class_total("chat") == Tally(13, 12)
    assert enter(book, heard("a", 30, 30, restarts=1)).class_total("chat") == Tally(40, 39)


def test_an_operator_that_starts_anew_goes_on_where_the_last_one_wrote() -> None:
    book = enter(Book(), heard("a", 10, 9))
    status = {"classes": [{"name": "chat", "days": [
        {"date": "2026-11-21", "total": 10, "attained": 9}]}]}  # fmt: skip
    noted = parse_counted(book.counted["a"].text())
    again = enter(opened(status), heard("a", 25, 20, noted=noted))
    assert again.class_total("chat") == Tally(25, 20)


def test_a_gateway_nobody_ever_counted_is_counted_from_its_start() -> None:
    assert enter(Book(), heard("new", 4, 4, noted=None)).class_total("chat") == Tally(4, 4)


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"restarts": "x", "classes": {}}'])
def test_an_annotation_that_is_not_ours_is_no_note(text: str | None) -> None:
    assert parse_counted(text) is None


def test_days_outside_of_the_period_and_classes_that_are_gone_are_cut() -> None:
    book = Book(
        {
            "chat": {"2026-11-14": Tally(1, 1), "2026-11-15": Tally(2, 2)},
            "gone": {"2026-11-21": Tally(9, 9)},
        },
        {"a": Counted(0, {}), "b": Counted(0, {})},
    )
    cut = trimmed(book, today=TODAY, period_s=7 * 86400.0, classes=["chat"], pods=["a"])
    assert cut.days == {"chat": {"2026-11-15": Tally(2, 2)}}
    assert set(cut.counted) == {"a"}


@pytest.mark.parametrize(
    ("total", "attained", "objective", "left"),
    [(0, 0, 0.9, 1.0), (100, 100, 0.9, 1.0), (100, 95, 0.9, 0.5), (100, 90, 0.9, 0.0),
     (100, 80, 0.9, -1.0), (10, 10, 1.0, 1.0), (10, 8, 1.0, -2.0)],
)  # fmt: skip
def test_the_budget_left_is_what_the_objective_allows_less_what_was_missed(
    total: int, attained: int, objective: float, left: float
) -> None:
    assert remaining(Tally(total, attained), objective) == pytest.approx(left)


@given(st.integers(0, 2**32))
def test_every_request_is_counted_once_under_restarts_of_everything(seed: int) -> None:
    """Gateways grow, restart and go; operators forget all but what they wrote down."""
    rng = random.Random(seed)
    truth = 0
    gateways = {"a": [0, 0], "b": [0, 0]}  # uid -> [restarts, counter]
    notes: dict[str, Counted] = {}
    book, status, today = Book(), Book(), TODAY
    for _ in range(40):
        action = rng.random()
        uid = rng.choice(list(gateways))
        if action < 0.5:
            grown = rng.randrange(5)
            gateways[uid][1] += grown
            truth += grown
        elif action < 0.85:
            told = [heard(u, n, n, restarts=r, noted=notes.get(u))
                    for u, (r, n) in gateways.items()]  # fmt: skip
            book = enter(book, *told, today=today)
            if rng.random() < 0.5:  # written: status, then notes
                status, notes = Book(book.days), dict(book.counted)
        elif action < 0.9:
            book = Book(status.days)  # the operator starts anew
        elif action < 0.95:
            today += timedelta(days=1)
        else:  # what is not counted yet would be lost with the process, so it is asked before
            told = [heard(uid, gateways[uid][1], gateways[uid][1], restarts=gateways[uid][0],
                          noted=notes.get(uid))]  # fmt: skip
            book = enter(book, *told, today=today)
            status, notes = Book(book.days), notes | dict(book.counted)
            gateways[uid] = [gateways[uid][0] + 1, 0]
    told = [heard(u, n, n, restarts=r, noted=notes.get(u)) for u, (r, n) in gateways.items()]
    assert enter(book, *told, today=today).class_total("chat").total == truth
