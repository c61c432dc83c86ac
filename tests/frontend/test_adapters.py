"""One replica, several names: the model and its adapters."""

from dataclasses import replace
from typing import Any

import pytest

from sloserve.slo import LoraSpec


@pytest.fixture
def adapted(running: Any) -> Any:
    """A server whose model has two adapters."""
    spec = running.replica.spec
    lora = (LoraSpec("polite", "hf://org/polite"), LoraSpec("terse", "file:///models/terse"))
    new = replace(spec, model=replace(spec.model, lora=lora))
    running.on_loop(lambda: running.replica.apply(new))
    return running


def test_a_request_names_its_adapter_as_the_model(adapted: Any) -> None:
    for name, adapter in (("polite", "polite"), ("sim", ""), ("terse", "terse"), (None, "")):
        body = {"prompt": "abc", "max_tokens": 3, **({} if name is None else {"model": name})}
        answer = adapted.post("/v1/completions", json=body).json()
        assert answer["model"] == (name or "sim")
        assert adapted.runner.rows[-1].adapter == adapter
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "model": "polite"}
    assert adapted.post("/v1/chat/completions", json=chat).json()["model"] == "polite"
    assert adapted.runner.rows[-1].adapter == "polite"


def test_every_name_is_listed_and_an_unknown_one_is_told_them(adapted: Any) -> None:
    listed = adapted.client.get("/v1/models").json()["data"]
    assert [(m["id"], m["root"], m["parent"]) for m in listed] == [
        ("sim", "builtin://sim", None),
        ("polite", "hf://org/polite", "sim"),
        ("terse", "file:///models/terse", "sim"),
    ]
    assert adapted.client.get("/v1/models/polite").json() == listed[1]
    assert adapted.post("/tokenize", json={"prompt": "x", "model": "terse"}).status_code == 200
    answer = adapted.post("/v1/completions", json={"prompt": "x", "model": "rude"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].endswith("served: sim, polite, terse")


def test_a_prompt_under_another_adapter_finds_no_keys_of_it(adapted: Any) -> None:
    def cached(**more: str) -> int:
        body = {"prompt": "the same long prompt", "max_tokens": 1, **more}
        usage = adapted.post("/v1/completions", json=body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached() == 0
    assert cached() == 16
    assert cached(model="polite") == 0
    assert cached(model="terse") == 0
    assert cached(model="polite") == 16
    assert cached(cache_salt="6:polite") == 0, "no salt of a client is another's adapter"


def test_series_keep_the_name_of_the_model(adapted: Any) -> None:
    adapted.post("/v1/completions", json={"prompt": "x", "max_tokens": 2, "model": "polite"})
    text = adapted.client.get("/metrics").text
    assert 'model_name="sim"' in text
    assert 'model_name="polite"' not in text
    (line,) = [x for x in text.splitlines() if x.startswith("vllm:lora_requests_info{")]
    assert 'max_lora="2"' in line
