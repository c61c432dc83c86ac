"""The stub of gateways that the operator is measured with."""

import pytest
from bench.scale_stub import MISSED, NUM_BEFORE, WINDOW_S, Traffic, address_of, number_of

from sloserve_operator.reports import parse_report


def test_every_gateway_has_an_address_of_its_own() -> None:
    addresses = [address_of(number) for number in range(1000)]
    assert len(set(addresses)) == 1000
    assert [number_of(address) for address in addresses] == list(range(1000))


def test_counters_grow_with_time_and_not_with_being_asked() -> None:
    traffic = Traffic("s7", seed=1, now_s=1000.0)
    first = parse_report(traffic.report(now_s=1000.0))
    assert first.service == "s7"
    assert parse_report(traffic.report(now_s=1000.0)).classes == first.classes
    told = first.classes["chat"]
    assert told.since_start.total == NUM_BEFORE + told.last_5m.total
    for number in range(1, 201):
        told = parse_report(traffic.report(now_s=1000.0 + 15 * number)).classes["chat"]
        assert told.last_5m.total == pytest.approx(WINDOW_S, abs=30)  # one request a second
    assert told.since_start.total == NUM_BEFORE + WINDOW_S + 3000
    assert told.since_start.attainment == pytest.approx(1 - MISSED, abs=0.005)
