"""Bad input, wrong moments, broken machinery: each a clear answer, never a 5xx by mistake."""

import json
import socket
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("/v1/completions", {"prompt": "x", "temperature": 9}, 400, "temperature", "0 to 2"),
        ("/v1/completions", {"prompt": "x" * 512}, 400, "prompt", "got 512 tokens, allowed"),
        (
            "/v1/completions",
            {"prompt": "x" * 500, "max_tokens": 100},
            400,
            "max_tokens",
            "the prompt has 500 tokens, together 600; allowed: at most 512 together, so at most 12",
        ),
        ("/v1/completions", {"prompt": ""}, 400, "prompt", "got no tokens"),
        ("/v1/completions", {"prompt": [5, 999]}, 400, "prompt[0]", "999, allowed: 0 to 258"),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"900": 1}}, 400, "logit_bias", "900"),
        ("/v1/completions", {"prompt": "x", "min_tokens": 17}, 400, "min_tokens", "0 to 16"),
        ("/v1/completions", {"prompt": "x", "model": "y"}, 404, "model", "served: sim"),
        ("/v1/chat/completions", {}, 400, "messages", "is missing"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 9999}, 400, "max_tokens", "together"),
        (
            "/v1/chat/completions",
            {**CHAT, "max_completion_tokens": 9999},
            400,
            "max_completion_tokens",
            "together",
        ),
        ("/tokenize", {}, 400, "prompt", "exactly one of"),
        ("/detokenize", {"tokens": [999]}, 400, "tokens", "0 to 258"),
    ],
)
def test_bad_input_names_the_field_and_what_is_allowed(
    shared: Any, path: str, body: dict[str, Any], status: int, param: str, words: str
) -> None:
    answer = shared.post(path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_a_body_that_is_no_json_is_a_400(shared: Any) -> None:
    answer = shared.post("/v1/completions", content=b'{"prompt": ')
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]["message"]


def test_wrong_paths_and_methods_are_told_as_openai_does(shared: Any) -> None:
    missing = shared.client.get("/v2/chat")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = shared.client.get("/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_a_body_too_large_is_not_read(shared: Any) -> None:
    host, _, port = shared.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")
    chunks = (b"x" * (1 << 20) for _ in range(40))
    try:
        status = shared.client.post("/v1/completions", content=chunks).status_code
    except httpx.TransportError:  # it hangs up while we still send
        status = 413
    assert status == 413


def test_while_loading_it_says_so(unready: Any) -> None:
    answer = unready.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert answer.headers["x-slo-reason"] == "Loading"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "Loading"


def test_bad_input_is_bad_input_also_while_loading(unready: Any) -> None:
    assert unready.post("/v1/completions", json={"prompt": 5}).status_code == 400


def test_while_draining_new_requests_are_sent_away_and_the_connection_closed(
    running: Any,
) -> None:
    running.on_loop(running.replica.drain)
    answer = running.post("/v1/completions", json={"prompt": "x"})
    assert answer.status_code == 503
    assert answer.headers["x-slo-reason"] == "Draining"
    assert answer.headers["connection"] == "close"


def test_a_step_that_fails_before_the_first_token_is_a_500(running: Any) -> None:
    running.runner.breaks = lambda row: True
    answer = running.post("/v1/completions", json={"prompt": "x", "stream": True})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    running.runner.breaks = lambda row: False
    assert running.post("/v1/completions", json={"prompt": "x"}).status_code == 200


def test_a_stream_that_breaks_ends_with_an_error_that_the_official_client_raises(
    running: Any,
) -> None:
    running.runner.breaks = lambda row: len(row.tokens) > 5
    chunks: list[Any] = []

    def read(stream: openai.Stream[Any]) -> None:
        for chunk in stream:
            chunks.append(chunk)

    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
        stream = client.completions.create(model="sim", prompt="abc", max_tokens=9, stream=True)
        with pytest.raises(openai.APIError):
            read(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ABC"
    assert chunks[-1].choices[0].finish_reason == "error"


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
FIELDS = (
    "prompt", "messages", "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n",
    "stop", "stop_token_ids", "seed", "logit_bias", "logprobs", "top_logprobs", "echo", "stream",
    "stream_options", "tokens", "response_format", "tools", "chat_template_kwargs", "best_of",
)  # fmt: skip
PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from(PATHS),
    odd=st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=4),
)
def test_odd_bodies_never_make_a_5xx(shared: Any, path: str, odd: dict[str, Any]) -> None:
    body = {"prompt": "x", **CHAT, "max_tokens": 2, "tokens": [65], **odd}
    answer = shared.post(path, content=json.dumps(body))
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(PATHS), raw=st.binary(max_size=40))
def test_bytes_that_are_no_body_are_a_400(shared: Any, path: str, raw: bytes) -> None:
    assert shared.post(path, content=raw).status_code == 400


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                "x-slo-class",
                "x-slo-ttft-ms",
                "x-slo-tpot-ms",
                "x-slo-stage",
                "x-request-id",
                "x-sloserve-age-ms",
                "x-sloserve-promise",
                "x-sloserve-last-hop",
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(str.strip),
    )
)
def test_odd_headers_never_make_a_5xx(shared: Any, headers: dict[str, str]) -> None:
    answer = shared.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=headers)
    assert answer.status_code in (200, 400, 429)
