"""When a status is worth a write."""

import copy

from sloserve_operator.api import Obj
from sloserve_operator.status import due_s, without_news_of_days

STATUS: Obj = {
    "replicas": 2,
    "ready": "2/2",
    "bindingConstraint": "None",
    "worstAttainment": "99.0",
    "worstBudget": "80.0",
    "classes": [
        {
            "name": "fast",
            "attainment5m": "99.0",
            "budgetRemaining": "80.0",
            "days": [{"date": "2026-11-21", "total": 100, "attained": 99}],
        }
    ],
    "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "fine"}],
}


def changed(**of_class: object) -> Obj:
    status = copy.deepcopy(STATUS)
    status["classes"][0].update(of_class)
    return status


def test_nothing_new_is_never_written() -> None:
    assert due_s(STATUS, copy.deepcopy(STATUS), since_s=1e9, counted_s=1e9) is None


def test_conditions_and_counts_are_written_at_once() -> None:
    other = copy.deepcopy(STATUS)
    other["conditions"][0] |= {"status": "False", "reason": "RollingOut"}
    for wanted in (other, STATUS | {"replicas": 3}, changed(feasible=False)):
        assert due_s(STATUS, wanted, since_s=0.0, counted_s=0.0) == 0.0


def test_percentages_wait_for_half_a_minute_and_half_a_point() -> None:
    a_lot, a_little = changed(attainment5m="98.0"), changed(attainment5m="98.6")
    assert due_s(STATUS, a_lot, since_s=10.0, counted_s=10.0) == 20.0
    assert due_s(STATUS, a_lot, since_s=30.0, counted_s=30.0) == 0.0
    assert due_s(STATUS, a_little, since_s=30.0, counted_s=30.0) == 270.0
    assert due_s(STATUS, a_little, since_s=300.0, counted_s=300.0) == 0.0


def test_a_percentage_that_comes_or_goes_is_a_change() -> None:
    silent = copy.deepcopy(STATUS)
    del silent["classes"][0]["attainment5m"]
    assert due_s(STATUS, silent, since_s=30.0, counted_s=30.0) == 0.0


def test_counts_alone_wait_because_gateways_remember_them() -> None:
    counted = changed(days=[{"date": "2026-11-21", "total": 200, "attained": 199}])
    assert due_s(STATUS, counted, since_s=100.0, counted_s=100.0) == 200.0
    assert due_s(STATUS, counted, since_s=300.0, counted_s=300.0) == 0.0


def test_messages_and_the_binding_constraint_do_not_flicker() -> None:
    other = copy.deepcopy(STATUS)
    other["conditions"][0]["message"] = "loading: 3 of 5 GiB"
    for wanted in (other, STATUS | {"bindingConstraint": "KV"}):
        assert due_s(STATUS, wanted, since_s=10.0, counted_s=10.0) == 20.0
        assert due_s(STATUS, wanted, since_s=40.0, counted_s=40.0) == 0.0


def test_another_phase_of_loading_is_written_at_once_and_its_progress_is_not() -> None:
    def loading(phase: str) -> Obj:
        told = {"type": "Progressing", "status": "True", "reason": "Loading"}
        return STATUS | {"conditions": [told | {"message": f"1 replicas load: {phase}"}]}

    before = loading("fetching the model, 0.3 of 9.3 MiB")
    further = loading("fetching the model, 9.1 of 9.3 MiB")
    other = loading("measuring step times: batch 1 of 51")
    assert due_s(loading("starting"), before, since_s=1.0, counted_s=1.0) == 0.0
    assert due_s(before, further, since_s=1.0, counted_s=1.0) == 29.0
    assert due_s(before, other, since_s=1.0, counted_s=1.0) == 0.0


def test_shares_and_counts_of_requests_in_a_message_are_no_news() -> None:
    def missed(text: str) -> Obj:
        status = copy.deepcopy(STATUS)
        status["conditions"][0]["message"] = text
        return status

    before = missed("in the last 5 minutes: fast 97.9% of 1034 requests (objective 0.99)")
    later = missed("in the last 5 minutes: fast 98.1% of 1100 requests (objective 0.99)")
    other = missed("in the last 5 minutes: slow 98.1% of 1100 requests (objective 0.99)")
    assert due_s(before, later, since_s=40.0, counted_s=40.0) == 260.0
    assert due_s(before, other, since_s=40.0, counted_s=40.0) == 0.0


def test_a_percentage_is_not_kept_back_by_a_write_of_counts_nor_counts_by_one_of_it() -> None:
    moved = changed(attainment5m="98.0", days=[{"date": "2026-11-21", "total": 9, "attained": 8}])
    assert due_s(STATUS, moved, since_s=10.0, counted_s=200.0) == 20.0
    assert due_s(STATUS, moved, since_s=1.0, counted_s=299.0) == 1.0


def test_daily_counts_are_written_when_they_are_due_or_something_firm_is() -> None:
    news = {"days": [{"date": "2026-11-21", "total": 200, "attained": 198}]}
    moved = changed(attainment5m="98.0", **news)
    told = without_news_of_days(moved, previous=STATUS, counted_s=100.0)
    assert told == changed(attainment5m="98.0")
    assert without_news_of_days(moved, previous=STATUS, counted_s=300.0) is moved
    firm = moved | {"replicas": 3}
    assert without_news_of_days(firm, previous=STATUS, counted_s=1.0) is firm
    fresh = without_news_of_days(moved, previous={**STATUS, "classes": []}, counted_s=1.0)
    assert fresh["classes"][0]["days"] == news["days"]  # another class: that is firm
