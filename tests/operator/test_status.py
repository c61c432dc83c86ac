"""When a status is worth a write."""

import copy

from sloserve_operator.api import Obj
from sloserve_operator.status import due_s

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
