"""Replicas fetch their model from a hub, and say how far they are, or what keeps them."""

import re
from typing import TYPE_CHECKING

import pytest
from e2e.harness.hub import TOKEN, let_go, start_hub
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.service import Service
from e2e.harness.waiting import until

if TYPE_CHECKING:
    from e2e.conftest import Release

EASY = {"name": "chat", "ttft": {"target": "30s"}, "tpot": "5s", "objectivePercent": 90}


@pytest.fixture
def hub(kubectl: Kubectl, release: "Release") -> str:
    """URL of a hub in this story's namespace, which keeps back half of every file."""
    return start_hub(kubectl, image=f"localhost/sloserve-engine:{release.tag}")


def from_hub(url: str, model: str, **more: object) -> Obj:
    """Fields of a spec that fetches a model there."""
    env = [{"name": "HF_ENDPOINT", "value": url}]
    engine = {
        "device": "cpu",
        "threads": 1,
        "resources": {"requests": {"cpu": "250m", "memory": "768Mi"}},
        "podTemplate": {"spec": {"containers": [{"name": "replica", "env": env}]}},
    }
    return {"model": {"source": f"hf://{model}", **more}, "engine": engine, "sloClasses": [EASY]}


def put_token(kubectl: Kubectl, token: str) -> Obj:
    """A Secret with a token; the fields of the model that name it."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub-token"}}
    kubectl.apply({**secret, "stringData": {"token": token}})
    return {"tokenSecretRef": {"name": "hub-token", "key": "token"}}


def test_a_model_is_fetched_with_a_token_and_the_progress_is_told(
    hub: str, kubectl: Kubectl, service: Service
) -> None:
    token = put_token(kubectl, TOKEN)
    spec = from_hub(hub, "org/private", cache={"sizeLimit": "1Gi"}, **token)
    service.apply(**spec)

    def fetching() -> bool:
        told = service.condition("Progressing")
        words = r"fetching the model, [\d.]+ of [\d.]+ MiB"
        return told.get("reason") == "Loading" and bool(re.search(words, told["message"]))

    until(fetching, "the condition tells how far the download is", timeout_s=180)
    assert service.condition("Available")["reason"] == "Holding"
    let_go(kubectl)
    service.wait_ready(timeout_s=300)
    answer = service.complete(max_tokens=4)
    assert answer.status_code == 200, answer.text
    told = [e["message"] for e in kubectl.events(f"involvedObject.name={service.name}")]
    assert any("fetching the model" in text for text in told), told
    (pod,) = service.pods("replica")
    (cache,) = [v["emptyDir"] for v in pod["spec"]["volumes"] if v["name"] == "cache"]
    assert cache == {"sizeLimit": "1Gi"}


def test_a_wrong_token_is_told_in_words(hub: str, kubectl: Kubectl, service: Service) -> None:
    token = put_token(kubectl, "guessed")
    service.apply(**from_hub(hub, "org/private", **token))
    told = service.until_condition("Progressing", "False", "Crashing", timeout_s=180)
    assert "refuses the token" in told["message"]
    assert "hf://org/private" in told["message"]


def test_a_download_that_stands_still_runs_into_the_time_limit(hub: str, service: Service) -> None:
    service.apply(**from_hub(hub, "org/open", loadTimeout="20s"))
    told = service.until_condition("Progressing", "False", "LoadTimeout", timeout_s=180)
    assert "loadTimeout" in told["message"]
    assert service.condition("Ready")["status"] == "False"
