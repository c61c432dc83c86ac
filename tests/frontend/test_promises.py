"""Class headers, decisions before the first byte, and what a gateway is told."""

import json
from typing import Any

import httpx
import pytest

from sloserve.http import report
from sloserve.slo import Bank, Offer, OnInfeasible, Stage, Ttft
from sloserve.wire import offer_to_json, parse_stage_tokens

BODY = {"prompt": "abc", "max_tokens": 3}
LATE = {"x-sloserve-age-ms": "60000", "x-sloserve-last-hop": "1"}


def ask(running: Any, headers: dict[str, str], **fields: Any) -> httpx.Response:
    answer = running.post("/v1/completions", json={**BODY, **fields}, headers=headers)
    assert isinstance(answer, httpx.Response)
    return answer


def test_an_answer_explains_its_promise(shared: Any) -> None:
    answer = ask(shared, {"x-slo-class": "code", "x-request-id": "mine"})
    assert answer.status_code == 200
    assert answer.headers["x-slo-class"] == "code"
    assert answer.headers["x-slo-decision"] == "admitted"
    assert answer.headers["x-slo-ttft-ms"] == "500.000"
    assert answer.headers["x-slo-replica"] == "r0"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-sloserve-prompt-tokens"] == "3"
    assert "x-sloserve-report" not in answer.headers


def test_a_slowdown_is_resolved_to_milliseconds(shared: Any) -> None:
    assert ask(shared, {"x-slo-class": "chat"}).headers["x-slo-ttft-ms"] == "10000.000"


def test_a_clamped_target_is_said(shared: Any) -> None:
    answer = ask(shared, {"x-slo-class": "code", "x-slo-ttft-ms": "1"})
    assert answer.headers["x-slo-ttft-ms"] == "200.000"
    assert answer.headers["x-slo-note"] == "ttft clamped from 1 ms to 200 ms"


def test_an_id_that_is_no_id_is_replaced(shared: Any) -> None:
    answer = ask(shared, {"x-request-id": "x" * 500})
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-slo-class": "gold"}, "x-slo-class"),
        ({"x-slo-ttft-ms": "soon"}, "x-slo-ttft-ms"),
        ({"x-slo-class": "agent", "x-slo-stage": "x"}, "x-slo-stage"),
        ({"x-sloserve-age-ms": "young"}, "x-sloserve-age-ms"),
        ({"x-sloserve-age-ms": "-1"}, "x-sloserve-age-ms"),
        ({"x-sloserve-age-ms": "0", "x-sloserve-promise": "{}"}, "x-sloserve-promise"),
    ],
)
def test_bad_headers_are_named(shared: Any, headers: dict[str, str], param: str) -> None:
    answer = ask(shared, headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_promise_that_can_t_be_kept_is_declined_with_reason_and_time(shared: Any) -> None:
    answer = ask(shared, {"x-slo-class": "code", **LATE}, stream=True)
    assert answer.status_code == 429
    assert answer.headers["x-slo-decision"] == "declined"
    assert answer.headers["x-slo-reason"] == "TTFT"
    assert int(answer.headers["retry-after"]) >= 1
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("slo_declined", "TTFT")
    assert error["message"]


def test_a_class_that_degrades_is_served_all_the_same(shared: Any) -> None:
    answer = ask(shared, {"x-slo-class": "chat", **LATE})
    assert answer.status_code == 200
    assert answer.headers["x-slo-decision"] == "degraded"
    assert answer.headers["x-slo-reason"] == "TTFT"


def test_on_a_hop_that_is_not_the_last_nothing_is_degraded(shared: Any) -> None:
    answer = ask(shared, {"x-slo-class": "chat", "x-sloserve-age-ms": "60000"})
    assert answer.status_code == 429


def test_one_of_several_answers_that_can_t_be_kept_declines_them_all(running: Any) -> None:
    answer = ask(running, {"x-slo-class": "code", **LATE}, prompt=["a", "b"], n=2)
    assert answer.status_code == 429
    running.wait_for(lambda: not running.scheduler.requests)


def test_a_gateway_s_promise_is_taken_for_a_class_not_read_yet(shared: Any) -> None:
    offer = Offer(
        "newest", Ttft(target_s=7.0), (Stage("decode", 1.0),), OnInfeasible.DECLINE, 1.0,
        Bank.FIRST_TOKEN,
    )  # fmt: skip
    headers = {"x-sloserve-age-ms": "1.5", "x-sloserve-promise": offer_to_json(offer)}
    answer = ask(shared, headers)
    assert answer.headers["x-slo-class"] == "newest"
    assert answer.headers["x-slo-ttft-ms"] == "7000.000"
    told = report.from_header(answer.headers["x-sloserve-report"])
    assert (told.service, told.replica, told.state) == ("assistant", "r0", "ready")
    assert set(told.frontier) == {"chat", "code", "agent"}
    assert parse_stage_tokens(answer.headers["x-sloserve-stage-tokens"]) == [[3]]


@pytest.mark.parametrize(
    "change",
    [{"stages": []}, {"stages": [["x", -1, None]]}, {"ttft": {}}, {"weight": 0}],
)
def test_a_promise_that_makes_no_sense_is_refused(shared: Any, change: dict[str, Any]) -> None:
    promise = {
        "class": "x", "ttft": {"target": 1}, "stages": [["d", 1, None]],
        "onInfeasible": "Decline", "weight": 1, "bank": "firstToken", **change,
    }  # fmt: skip
    headers = {"x-sloserve-age-ms": "0", "x-sloserve-promise": json.dumps(promise)}
    assert ask(shared, headers).status_code == 400


def test_annotations_count_the_tokens_of_every_event(shared: Any) -> None:
    answer = ask(shared, {"x-sloserve-annotate": "1"}, stream=True)
    lines = answer.text.split("\n")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [x for x in lines if x.startswith(":")] == [": n=1 stage=0"] * 3
    assert lines[0].startswith(":")
    assert lines[1].startswith("data:")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert ": n=" not in ask(shared, {}, stream=True).text


def test_what_was_kept_is_counted_per_class(running: Any) -> None:
    ask(running, {})
    ask(running, {"x-slo-class": "code", **LATE})

    def kept(slo_class: str) -> tuple[float, float]:
        rest = f'service="assistant",slo_class="{slo_class}"'
        eligible = f'sloserve_replica_slo_requests_total{{model="sim",{rest}'
        attained = f'sloserve_replica_slo_attained_total{{model="sim",promise="all",{rest}'
        return running.metric(attained), running.metric(eligible)

    assert kept("chat") == (1, 1)
    assert kept("code") == (0, 1)
    assert kept("agent") == (0, 0)
