"""Health, readiness, metrics and the last steps."""

from dataclasses import replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from sloserve.frontend.replica import Progress
from sloserve.http import report
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.slo import SloClass, Stage, Ttft


def test_health_is_good_from_the_start(unready: Any) -> None:
    assert unready.client.get("/health").status_code == 200


def test_ready_tells_how_far_loading_has_come(unready: Any) -> None:
    progress = Progress("loading weights", 10, 20)
    unready.on_loop(lambda: setattr(unready.replica, "progress", progress))
    answer = unready.client.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "loading", "replica": "r0", "phase": "loading weights", "bytes_done": 10,
        "bytes_total": 20,
    }  # fmt: skip


def test_ready_is_true_only_between_loading_and_draining(running: Any) -> None:
    assert running.client.get("/ready").status_code == 200
    running.on_loop(running.replica.drain)
    answer = running.client.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")


def test_health_fails_when_every_step_breaks(running: Any) -> None:
    running.runner.breaks = lambda row: True
    for _ in range(3):
        running.post("/v1/completions", json={"prompt": "x"})
    assert running.client.get("/health").status_code == 503


def test_metrics_are_prometheus_text_of_declared_names(running: Any) -> None:
    running.post("/v1/completions", json={"prompt": "abc", "max_tokens": 4})
    answer = running.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    declared = {m.name.removesuffix("_total") for m in REPLICA_EXPORTS}
    assert {name.removesuffix("_total") for name in families} <= declared
    values = {s.name: s.value for f in families.values() for s in f.samples}
    assert values["vllm:generation_tokens_total"] == 4
    assert values["vllm:prompt_tokens_total"] == 3
    assert values["vllm:prefix_cache_queries_total"] >= 3
    assert values["vllm:time_to_first_token_seconds_count"] == 1
    assert values["vllm:inter_token_latency_seconds_count"] == 3
    assert values["sloserve_step_seconds_count"] == values["vllm:iteration_tokens_total_count"] == 4
    assert values["sloserve_config_generation"] == 3
    assert values["vllm:cache_config_info"] == 1


def test_every_class_is_counted_from_zero(running: Any) -> None:
    text = running.client.get("/metrics").text
    for name in ("chat", "code", "agent"):
        labels = f'model="sim",service="assistant",slo_class="{name}"'
        assert f"sloserve_replica_slo_requests_total{{{labels}}} 0.0" in text


def test_the_name_filter_gives_the_report_and_nothing_else(shared: Any) -> None:
    text = shared.client.get(report.PATH).text
    told = report.parse(text)
    assert (told.service, told.replica, told.state) == ("assistant", "r0", "ready")
    assert told.total_blocks == 512
    assert set(told.frontier) == {"chat", "code", "agent"}
    assert "vllm" not in text


def test_a_replica_that_loads_reports_that_it_does(unready: Any) -> None:
    told = report.parse(unready.client.get(report.PATH).text)
    assert (told.service, told.replica, told.state) == ("assistant", "r0", "loading")
    assert told.config_generation == 3


def test_metrics_answer_to_head(shared: Any) -> None:
    answer = shared.client.head("/metrics")
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_last_steps_can_be_read(running: Any) -> None:
    running.post("/v1/completions", json={"prompt": "abc", "max_tokens": 4})
    steps = running.client.get("/debug/steps").json()["steps"]
    assert [step["number"] for step in steps] == [1, 2, 3, 4]
    assert steps[0]["num_prefill_tokens"] == 3


def test_tokens_there_and_back(shared: Any) -> None:
    told = shared.post("/tokenize", json={"prompt": "abé"}).json()
    assert told == {"count": 4, "max_model_len": 512, "tokens": [97, 98, 195, 169]}
    back = shared.post("/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": "abé"}
    chat = shared.post("/tokenize", json={"messages": [{"role": "user", "content": "x"}]}).json()
    assert chat["count"] > 1


def test_the_version_is_told(shared: Any) -> None:
    assert shared.client.get("/version").json()["version"]


def test_a_class_change_applies_to_the_next_request(running: Any) -> None:
    spec = running.replica.spec
    gold = SloClass("gold", Ttft(target_s=9.0), (Stage("decode", 1.0),))
    changed = replace(spec, classes=(*spec.classes, gold), generation=4)
    running.on_loop(lambda: running.replica.apply(changed))
    answer = running.post("/v1/completions", json={"prompt": "x"}, headers={"x-slo-class": "gold"})
    assert answer.headers["x-slo-ttft-ms"] == "9000.000"
    assert running.metric("sloserve_config_generation") == 4
    running.wait_for(lambda: "gold" in report.parse(running.client.get(report.PATH).text).frontier)


def test_the_api_describes_itself(shared: Any) -> None:
    document = shared.client.get("/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/ChatBody")
    assert "messages" in document["components"]["schemas"]["ChatBody"]["properties"]
    assert "Message" in document["components"]["schemas"]
