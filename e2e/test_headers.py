"""Headers and keys are honoured, and every answer explains itself."""

import hashlib
from collections.abc import Mapping

import pytest
import yaml
from e2e.harness.kubectl import Kubectl
from e2e.harness.service import CHAT, Service

ANYTHING, CHAT_ONLY, CODER = "key-for-anything", "key-for-chat", "key-of-a-coder"
CODE = {
    "name": "code",
    "ttft": {"target": "1s"},
    "tpot": "100ms",
    "objectivePercent": 95,
    "tightest": {"ttft": "500ms", "tpot": "50ms"},
}
KEYS = [
    {"name": "anything", "sha256": hashlib.sha256(ANYTHING.encode()).hexdigest()},
    {
        "name": "chat-only",
        "sha256": hashlib.sha256(CHAT_ONLY.encode()).hexdigest(),
        "classes": ["chat"],
    },
    {
        "name": "coder",
        "sha256": hashlib.sha256(CODER.encode()).hexdigest(),
        "defaultClass": "code",
    },
]


def test_keys_and_headers_decide_what_a_request_is_promised(
    kubectl: Kubectl, service: Service
) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"keys.yaml": yaml.safe_dump({"keys": KEYS})},
    }
    kubectl.apply(secret)
    service.ready(sloClasses=[CHAT, CODE], gateway={"auth": {"secretName": "keys"}})
    keys_are_asked_for(service)
    targets_are_resolved(service)
    answers_explain_themselves(service)
    openai_streams(service)


def keys_are_asked_for(service: Service) -> None:
    for key, code in ((None, "missing_api_key"), ("guessed", "invalid_api_key")):
        refused = service.complete(headers=bearer(key))
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == code
    refused = service.complete(headers={**bearer(CHAT_ONLY), "x-slo-class": "code"})
    assert refused.status_code == 403
    assert "allowed: chat" in refused.json()["error"]["message"]
    for key, slo_class in ((ANYTHING, "chat"), (CHAT_ONLY, "chat"), (CODER, "code")):
        answer = service.complete(headers=bearer(key))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-slo-class"] == slo_class


def targets_are_resolved(service: Service) -> None:
    def ask(**headers: str) -> Mapping[str, str]:
        named = {f"x-slo-{name.replace('_', '-')}": value for name, value in headers.items()}
        answer = service.complete(headers={**bearer(ANYTHING), **named})
        assert answer.status_code == 200, answer.text
        return answer.headers

    assert ask(**{"class": "code"})["x-slo-ttft-ms"] == "1000"
    tightened = ask(**{"class": "code"}, ttft_ms="600")
    assert tightened["x-slo-ttft-ms"] == "600"
    assert "x-slo-note" not in tightened
    clamped = ask(**{"class": "code"}, ttft_ms="100", tpot_ms="10")
    assert clamped["x-slo-ttft-ms"] == "500"
    assert "ttft clamped from 100 ms to 500 ms" in clamped["x-slo-note"]
    assert "tpot of decode clamped from 10 ms to 50 ms" in clamped["x-slo-note"]
    assert ask(**{"class": "code"}, ttft_ms="4000")["x-slo-ttft-ms"] == "4000"
    assert ask(**{"class": "code"}, ttft_ms="0")["x-slo-ttft-ms"] == "1000"
    unmoved = ask(**{"class": "chat"}, ttft_ms="600")
    assert unmoved["x-slo-ttft-ms"] == "2000"
    assert "clamped" in unmoved["x-slo-note"]

    unknown = service.complete(headers={**bearer(ANYTHING), "x-slo-class": "poetry"})
    assert unknown.status_code == 400
    assert "known: chat, code" in unknown.json()["error"]["message"]
    no_number = service.complete(headers={**bearer(ANYTHING), "x-slo-ttft-ms": "soon"})
    assert no_number.status_code == 400
    assert "milliseconds" in no_number.json()["error"]["message"]


def answers_explain_themselves(service: Service) -> None:
    answer = service.complete(headers={**bearer(ANYTHING), "x-request-id": "story-1"})
    told = {name: answer.headers.get(f"x-slo-{name}") for name in ("class", "decision", "hops")}
    assert told == {"class": "chat", "decision": "admitted", "hops": "1"}
    assert answer.headers["x-slo-replica"] in service.pod_names("replica")
    assert answer.headers["x-request-id"] == "story-1"


def openai_streams(service: Service) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=service.base_url, api_key=CODER, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [service.name]
        chunks = list(
            client.chat.completions.create(
                model=service.name,
                messages=[{"role": "user", "content": "What is a promise?"}],
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        pieces = [c.choices[0].delta.content for c in chunks if c.choices]
        assert "".join(p for p in pieces if p).startswith("This is a simulated")
        assert len([p for p in pieces if p]) > 1, "it came in one piece"
        assert chunks[-1].usage.completion_tokens == 24
    with (
        openai.OpenAI(base_url=service.base_url, api_key="guessed", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}
