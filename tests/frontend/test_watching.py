"""Health, readiness, metrics and the last steps."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sloserve.engine.sim import sim_facts
from sloserve.engine.timeline import StepRecord, Timeline
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.frontend.figures import Figures
from sloserve.frontend.replica import Progress, Replica, Served
from sloserve.http import report
from sloserve.http.exporter import Exporter
from sloserve.metrics import REPLICA_EXPORTS
from sloserve.perf import StepModel
from sloserve.slo import SloClass, Stage, Ttft

MODEL = StepModel(w=0.001, a0=1e-6, c1=0.0, a1=2e-6, b=1e-9, d=1e-9)


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


def test_health_fails_while_a_hung_runner_keeps_work_waiting(running: Any) -> None:
    def health() -> tuple[int, str]:
        answer = running.client.get("/health")
        return answer.status_code, answer.json()["status"]

    running.clock.skip(1000)  # idle for long: that is no stall
    assert health() == (200, "ok")
    running.runner.go.clear()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(running.post, "/v1/completions", json={"prompt": "abc"})
        running.wait_for(lambda: running.replica.served.engine.num_running == 1)
        assert health() == (200, "ok")
        running.clock.skip(11)
        assert health() == (503, "stalled")
        assert running.client.get("/debug/steps").json()["stalled"] is True
        running.runner.go.set()
        assert answer.result().status_code == 200
    assert health() == (200, "ok")


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
    assert values["vllm:cache_config_info"] == 1
    running.wait_for(lambda: running.metric("sloserve_config_generation") == 3)  # by a report


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


def test_as_many_of_the_last_steps_as_wanted_are_told(running: Any) -> None:
    running.post("/v1/completions", json={"prompt": "abc", "max_tokens": 6})

    def told(query: str) -> Any:
        return running.client.get(f"/debug/steps?{query}").json()

    assert [step["number"] for step in told("last=2")["steps"]] == [5, 6]
    assert [step["number"] for step in told("last=4&after=4")["steps"]] == [5, 6]
    assert told("after=6")["steps"] == told("last=0")["steps"] == []
    assert told("last=0")["num_steps"] == 6
    assert told("last=0")["stalled"] is False
    error = told("last=0")["error"]
    assert (error["num_steps"], error["off"]) == (6, False)
    assert error["mean_ratio"] > 0


@pytest.mark.parametrize("query", ["last=-1", "last=1025", "last=x", "after=-1"])
def test_a_wrong_number_of_steps_is_bad_input(shared: Any, query: str) -> None:
    answer = shared.client.get(f"/debug/steps?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_a_replica_that_loads_has_no_steps(unready: Any) -> None:
    assert unready.client.get("/debug/steps").json() == {
        "num_steps": 0,
        "stalled": False,
        "error": {"num_steps": 0, "mean_ratio": None, "off": False},
        "steps": [],
    }


class Remembered:
    """An engine that has taken the steps that a test says."""

    def __init__(self) -> None:
        self._timeline = Timeline()
        self.steps_since = self._timeline.since

    def set_classes(self, classes: Any, *, generation: int) -> None:
        """None are reported on."""

    def took(self, ratio: float, *, num_steps: int) -> None:
        """Steps of so many times their predicted 10 ms."""
        for _ in range(num_steps):
            self._timeline.add(
                StepRecord(
                    number=self._timeline.num_steps + 1,
                    planned_s=0.0,
                    plan_s=0.0,
                    predicted_s=0.010,
                    actual_s=0.010 * ratio,
                    period_s=0.010 * ratio,
                    num_rows=1,
                    num_decodes=1,
                    num_prefill_tokens=0,
                    num_best_effort_tokens=0,
                    context=0,
                    pairs=0.0,
                    num_waiting=0,
                    free_blocks=0,
                )
            )


def test_a_step_model_that_is_off_is_a_metric_and_one_warning(
    spec: Any, caplog: pytest.LogCaptureFixture
) -> None:
    replica, engine, exporter = Replica(spec, name="r0"), Remembered(), Exporter(REPLICA_EXPORTS)
    figures = Figures(replica, exporter, emission_lag_s=lambda: 0.0)
    replica.attach(Served(engine, ByteTokenizer(), sim_facts(), MODEL))  # type: ignore[arg-type]

    def told() -> list[str]:
        figures.pump()
        found = [r.getMessage() for r in caplog.records if "step model" in r.getMessage()]
        caplog.clear()
        return [*found, f"{exporter.value('sloserve_step_model_off'):g}"]

    caplog.set_level("INFO")
    assert told() == ["0"]
    engine.took(1.5, num_steps=199)
    assert told() == ["0"]
    engine.took(1.5, num_steps=1)
    said = "the step model is off: measured over predicted is 1.50 over the last 200 steps"
    assert told() == [said, "1"]
    engine.took(1.5, num_steps=100)
    assert told() == told() == ["1"]
    engine.took(1.0, num_steps=400)
    assert told()[0].startswith("the step model fits again: measured over predicted is 1.00")
    assert told() == ["0"]


def test_tokens_there_and_back(shared: Any) -> None:
    told = shared.post("/tokenize", json={"prompt": "abé"}).json()
    assert told == {"count": 4, "max_model_len": 512, "tokens": [97, 98, 195, 169]}
    back = shared.post("/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": "abé"}
    chat = shared.post("/tokenize", json={"messages": [{"role": "user", "content": "x"}]}).json()
    assert chat["count"] > 1


def test_clients_that_tokenise_here_are_told_the_special_tokens(shared: Any) -> None:
    told = shared.client.get("/tokenizer_info").json()
    assert told["eos_token"] == "<|end|>"
    assert shared.post("/tokenize", json={"prompt": told["eos_token"]}).json()["count"] == 1
    assert {"bos_token", "pad_token", "chat_template"} < told.keys()


def test_the_version_is_told(shared: Any) -> None:
    assert shared.client.get("/version").json()["version"]


def test_a_class_change_applies_to_the_next_request(running: Any) -> None:
    spec = running.replica.spec
    gold = SloClass("gold", Ttft(target_s=9.0), (Stage("decode", 1.0),))
    changed = replace(spec, classes=(*spec.classes, gold), generation=4)
    running.on_loop(lambda: running.replica.apply(changed))
    answer = running.post("/v1/completions", json={"prompt": "x"}, headers={"x-slo-class": "gold"})
    assert answer.headers["x-slo-ttft-ms"] == "9000.000"
    running.wait_for(lambda: running.metric("sloserve_config_generation") == 4)
    running.wait_for(lambda: "gold" in report.parse(running.client.get(report.PATH).text).frontier)


def test_the_api_describes_itself(shared: Any) -> None:
    document = shared.client.get("/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/ChatBody")
    assert "messages" in document["components"]["schemas"]["ChatBody"]["properties"]
    assert "Message" in document["components"]["schemas"]
