"""API keys: what each may do, limits, reload."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from sloserve.errors import BadInput
from sloserve.gateway.keys import Key, KeyRefused, Keyring, load_keys
from sloserve.http.watch import Watched

Make = Any
"""A builder from conftest."""


def a_key(name: str, secret: str, **rights: Any) -> Key:
    return Key(name, hashlib.sha256(secret.encode()).digest(), **rights)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_no_key_and_a_wrong_key_are_401_in_openais_shape(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with gateway(replica(), keys=(a_key("a", "good"),)) as world:
            for headers, code in (
                ({}, "missing_api_key"),
                ({"authorization": "Basic x"}, "missing_api_key"),
                (bearer("wrong"), "invalid_api_key"),
            ):
                answer = await world.ask(headers=headers)
                assert answer.status == 401
                assert answer.json["error"].keys() == {"message", "type", "param", "code"}
                assert answer.json["error"]["code"] == code
                assert "x-request-id" in answer.headers
            assert (await world.ask(headers=bearer("good"))).status == 200
            for path in ("/v1/models", "/v1/slo"):
                assert (await world.get(path)).status == 401
                assert (await world.get(path, bearer("good"))).status == 200
            assert (await world.get("/health")).status == 200
            assert world.judged() == (1, 1, 1, 1)

    asyncio.run(story())


def test_a_key_binds_classes_and_models(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        keys = (
            a_key("strict", "k1", classes=("strict",)),
            a_key("default", "k2", default_class="strict"),
            a_key("other", "k3", models=("other",)),
        )
        async with gateway(replica(), keys=keys) as world:
            answer = await world.ask(headers=bearer("k1"))
            assert answer.headers["x-slo-class"] == "strict"
            answer = await world.ask(headers={**bearer("k1"), "x-slo-class": "chat"})
            assert answer.status == 403
            assert "allowed: strict" in answer.json["error"]["message"]
            answer = await world.ask(headers=bearer("k2"))
            assert answer.headers["x-slo-class"] == "strict"
            answer = await world.ask(headers={**bearer("k2"), "x-slo-class": "chat"})
            assert answer.headers["x-slo-class"] == "chat"
            answer = await world.ask(headers=bearer("k3"))
            assert answer.status == 403
            assert "allowed: other" in answer.json["error"]["message"]

    asyncio.run(story())


def test_limits_of_a_key_are_429_and_say_when(gateway: Make, replica: Make, act: Make) -> None:
    async def story() -> None:
        keys = (
            a_key("narrow", "k1", max_concurrency=1),
            a_key("slow", "k2", requests_per_minute=2),
        )
        async with gateway(replica(), keys=keys) as world:
            go = asyncio.Event()
            world.replicas[0].acts.append(act(after_all=go))
            first = asyncio.create_task(world.ask(stream=True, headers=bearer("k1")))
            await world.until(lambda: bool(world.replicas[0].asked))
            refused = await world.ask(headers=bearer("k1"))
            assert refused.status == 429
            assert refused.headers["x-slo-reason"] == "RateLimit"
            assert int(refused.headers["retry-after"]) >= 1
            go.set()
            assert (await first).status == 200
            await world.until(lambda: not world.core.open)
            assert (await world.ask(headers=bearer("k1"))).status == 200
            statuses = [(await world.ask(headers=bearer("k2"))).status for _ in range(3)]
            assert statuses == [200, 200, 429]
            assert world.judged()[0] == 4  # a key's own limit is no broken promise

    asyncio.run(story())


def test_requests_of_a_minute_ago_no_longer_count() -> None:
    key = a_key("a", "x", requests_per_minute=2)
    ring = Keyring((key,))
    for at_s in (0.0, 1.0):
        ring.begin(key, at_s)
        ring.end(key)
    with pytest.raises(KeyRefused, match="2 requests in the last minute"):
        ring.begin(key, 59.0)
    ring.begin(key, 60.5)


DIGEST = hashlib.sha256(b"secret").hexdigest()


def test_the_key_file_is_read_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{name: a, sha256: {DIGEST}, classes: [chat], maxConcurrency: 2}}]")
    watched = Watched(path, load_keys)
    assert watched.value == (a_key("a", "secret", classes=("chat",), max_concurrency=2),)
    ring = Keyring(watched.value)
    assert ring.authenticate("Bearer secret").name == "a"
    other = hashlib.sha256(b"other").hexdigest()
    path.write_text(f"keys:\n  - name: b\n    sha256: {other.upper()}\n")
    assert watched.poll()
    ring.replace(watched.value)
    assert ring.authenticate("Bearer other").name == "b"
    with pytest.raises(KeyRefused):
        ring.authenticate("Bearer secret")
    path.write_text("keys: [{name: c}]")
    assert not watched.poll()  # bad content keeps what is in force
    assert ring.authenticate("Bearer other").name == "b"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[]", "one field 'keys'"),
        ("keys: {}", "one field 'keys'"),
        ("keys: [x]", "keys[0]: got str"),
        ("keys: [{name: a, sha256: abc}]", "keys[0].sha256"),
        (f"keys: [{{sha256: {DIGEST}}}]", "keys[0].name"),
        (f"keys: [{{name: a, sha256: {DIGEST}, class: x}}]", "unknown field 'class'"),
        (f"keys: [{{name: a, sha256: {DIGEST}, classes: []}}]", "keys[0].classes"),
        (f"keys: [{{name: a, sha256: {DIGEST}, maxConcurrency: 0}}]", "keys[0].maxConcurrency"),
        (f"keys: [{{name: a, sha256: {DIGEST}, requestsPerMinute: x}}]", "requestsPerMinute"),
        (
            f"keys: [{{name: a, sha256: {DIGEST}, classes: [x], defaultClass: y}}]",
            "keys[0].defaultClass",
        ),
        (f"keys: [{{name: a, sha256: {DIGEST}}}, {{name: b, sha256: {DIGEST}}}]", "same sha256"),
    ],
)
def test_a_bad_key_file_names_the_field_and_never_shows_a_hash(
    tmp_path: Path, text: str, wanted: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        load_keys(path)
    assert wanted in refused.value.message
    assert DIGEST not in refused.value.message
