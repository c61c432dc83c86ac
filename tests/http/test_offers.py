"""Classes and targets from headers."""

import pytest

from sloserve.errors import BadInput
from sloserve.http.offers import resolve_offer
from sloserve.slo import OnInfeasible
from sloserve.slo.service import ServiceSpec


def test_without_headers_the_default_class_is_promised(spec: ServiceSpec) -> None:
    resolved = resolve_offer(spec, {})
    assert resolved.offer.slo_class == "chat"
    assert resolved.offer.ttft.slowdown == 5
    assert resolved.notes == ()


def test_a_key_s_default_class_beats_the_service_s_and_the_header_beats_both(
    spec: ServiceSpec,
) -> None:
    assert resolve_offer(spec, {}, "code").offer.slo_class == "code"
    offer = resolve_offer(spec, {"x-slo-class": "reason"}, "code").offer
    assert offer.slo_class == "reason"
    assert [stage.until for stage in offer.stages] == ["</think>", None]


@pytest.mark.parametrize(
    "header", ["x-slo-class", "x-llm-d-inference-objective", "x-gateway-inference-objective"]
)
def test_every_alias_names_the_class(spec: ServiceSpec, header: str) -> None:
    offer = resolve_offer(spec, {header: "code"}).offer
    assert offer.slo_class == "code"
    assert offer.on_infeasible is OnInfeasible.DECLINE


def test_an_unknown_class_is_refused_with_those_that_are_known(spec: ServiceSpec) -> None:
    with pytest.raises(BadInput, match="'gold', known: chat, code, reason, agent") as caught:
        resolve_offer(spec, {"x-slo-class": "gold"})
    assert caught.value.field == "x-slo-class"


def test_loosening_is_free(spec: ServiceSpec) -> None:
    headers = {"x-slo-class": "code", "x-slo-ttft-ms": "3000", "x-slo-tpot-ms": "90.5"}
    resolved = resolve_offer(spec, headers)
    assert resolved.offer.ttft.target_s == 3.0
    assert resolved.offer.stages[0].tpot_s == pytest.approx(0.0905)
    assert resolved.notes == ()


def test_tightening_ends_at_the_class_s_tightest_and_says_so(spec: ServiceSpec) -> None:
    headers = {"x-slo-class": "code", "x-slo-ttft-ms": "50", "x-slo-tpot-ms": "1"}
    resolved = resolve_offer(spec, headers)
    assert resolved.offer.ttft.target_s == pytest.approx(0.2)
    assert resolved.offer.stages[0].tpot_s == pytest.approx(0.02)
    assert resolved.notes == (
        "ttft clamped from 50 ms to 200 ms",
        "tpot of decode clamped from 1 ms to 20 ms",
    )


def test_within_tightest_a_target_is_granted(spec: ServiceSpec) -> None:
    resolved = resolve_offer(spec, {"x-slo-class": "code", "x-slo-ttft-ms": "300"})
    assert resolved.offer.ttft.target_s == pytest.approx(0.3)
    assert resolved.notes == ()


def test_without_tightest_a_class_is_not_tightened_at_all(spec: ServiceSpec) -> None:
    headers = {"x-slo-class": "reason", "x-slo-ttft-ms": "10", "x-slo-tpot-ms": "70"}
    resolved = resolve_offer(spec, headers)
    assert resolved.offer.ttft.target_s == 1.0
    assert [s.tpot_s for s in resolved.offer.stages] == [pytest.approx(0.07), 0.1]
    assert len(resolved.notes) == 2


def test_a_slowdown_can_be_loosened_before_the_prompt_is_known(spec: ServiceSpec) -> None:
    ttft = resolve_offer(spec, {"x-slo-ttft-ms": "1000"}).offer.ttft
    assert ttft.resolve_s(0.01) == 1.0
    assert ttft.resolve_s(0.5) == 2.5


@pytest.mark.parametrize("text", ["fast", "nan", "inf", "1e999", "1,5"])
def test_a_target_that_is_no_number_is_refused(spec: ServiceSpec, text: str) -> None:
    with pytest.raises(BadInput, match="allowed: milliseconds as a number") as caught:
        resolve_offer(spec, {"x-slo-ttft-ms": text})
    assert caught.value.field == "x-slo-ttft-ms"


@pytest.mark.parametrize("text", ["0", "-5", "", " "])
def test_zero_and_less_count_as_absent(spec: ServiceSpec, text: str) -> None:
    headers = {"x-slo-class": "code", "x-slo-ttft-ms": text, "x-slo-tpot-ms": text}
    assert resolve_offer(spec, headers) == resolve_offer(spec, {"x-slo-class": "code"})


def test_the_neutral_header_beats_its_alias(spec: ServiceSpec) -> None:
    headers = {"x-slo-class": "code", "x-llm-d-slo-ttft-ms": "900"}
    assert resolve_offer(spec, headers).offer.ttft.target_s == pytest.approx(0.9)
    headers["x-slo-ttft-ms"] = "700"
    assert resolve_offer(spec, headers).offer.ttft.target_s == pytest.approx(0.7)


def test_a_client_names_the_stage_of_classes_whose_stages_it_names(spec: ServiceSpec) -> None:
    stages = resolve_offer(spec, {"x-slo-class": "agent", "x-slo-stage": "final"}).offer.stages
    assert [(s.name, s.tpot_s) for s in stages] == [("final", 0.08)]
    assert resolve_offer(spec, {"x-slo-class": "agent"}).offer.stages[0].name == "loop"
    with pytest.raises(BadInput, match="unknown stage 'middle' of class agent, known: loop, final"):
        resolve_offer(spec, {"x-slo-class": "agent", "x-slo-stage": "middle"})


def test_a_stage_is_ignored_and_said_so_where_the_model_marks_them(spec: ServiceSpec) -> None:
    resolved = resolve_offer(spec, {"x-slo-class": "chat", "x-slo-stage": "final"})
    assert resolved.notes == ("stage ignored: chat has no stages that a client names",)
