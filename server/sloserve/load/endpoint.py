"""An OpenAI endpoint under test: what it can do, and prompts of a known length for it."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from sloserve.errors import BadInput, Failed

TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from
or had an they which one you were her all she there would their we him been has when who
will more no if out so said what up its about into than them can only other new some
"""
WORDS = tuple(TEXT.split())
CALIBRATION_WORDS = 200


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send: `base_url` ends in /v1."""

    base_url: str
    model: str
    api_key: str | None = None

    @property
    def root_url(self) -> str:
        """Without /v1: where `/tokenize` lives."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """Sent with every request."""
        key = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"content-type": "application/json", **key}


@dataclass(frozen=True, slots=True)
class Prompts:
    """
    Prompts of a given number of tokens.

    `pool` holds token ids to draw from; empty: the endpoint takes text only, and a text of n
    tokens is about `words_per_token` * n words. `exact_length` says whether the endpoint knows
    ignore_eos and min_tokens, so that answers get the length the trace has.
    """

    pool: Sequence[int]
    words_per_token: float
    exact_length: bool
    seed: int = 0

    def body(self, *, model: str, number: int, prompt_tokens: int, output_tokens: int) -> bytes:
        """The request body of request `number`; the same seed and number, the same prompt."""
        dice = random.Random(self.seed * 1_000_003 + number)
        prompt: object
        if self.pool:
            prompt = dice.choices(self.pool, k=prompt_tokens)
        else:
            prompt = " ".join(dice.choices(WORDS, k=round(prompt_tokens * self.words_per_token)))
        fields: dict[str, object] = {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if self.exact_length:
            fields |= {"ignore_eos": True, "min_tokens": output_tokens}
        return json.dumps(fields, separators=(",", ":")).encode()


async def examine(session: aiohttp.ClientSession, endpoint: Endpoint, *, seed: int) -> Prompts:
    """
    Ask the endpoint what it can do, with two or three small requests.

    Raises BadInput when it can't be reached or refuses a plain completion.
    """
    pool = await _token_pool(session, endpoint)
    extras = {"ignore_eos": True, "min_tokens": 1}
    for prompt, more in ((pool[:8], extras), (pool[:8], {}), ("", extras), ("", {})):
        prompt = prompt or " ".join(WORDS[:8])
        answer = await _complete(session, endpoint, prompt, more)
        if answer is not None:
            break
    else:
        raise BadInput(
            f"{endpoint.base_url}/completions refuses plain requests for {endpoint.model!r}",
            field="--url",
        )
    if not isinstance(prompt, str) and answer["usage"]["prompt_tokens"] == len(prompt):
        return Prompts(pool, 0.0, bool(more), seed)
    dice = random.Random(seed)
    text = " ".join(dice.choices(WORDS, k=CALIBRATION_WORDS))
    answer = await _complete(session, endpoint, text, more)
    if answer is None:
        raise Failed(f"{endpoint.base_url} took a short prompt and then refused a longer one")
    return Prompts((), CALIBRATION_WORDS / answer["usage"]["prompt_tokens"], bool(more), seed)


async def find_model(session: aiohttp.ClientSession, base_url: str, api_key: str | None) -> str:
    """The first model the endpoint lists."""
    endpoint = Endpoint(base_url, "", api_key)
    try:
        async with session.get(f"{base_url}/models", headers=endpoint.headers) as response:
            listed = (await response.json())["data"] if response.status == 200 else []
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"can't list models at {base_url}: {error}", field="--url") from error
    if not listed:
        raise BadInput(f"{base_url}/models lists none; name one", field="--model")
    return str(listed[0]["id"])


async def _token_pool(session: aiohttp.ClientSession, endpoint: Endpoint) -> list[int]:
    """Ids of ordinary tokens, by the endpoint's own tokenizer; low ids where it has no route."""
    body = {"model": endpoint.model, "prompt": " ".join(WORDS), "add_special_tokens": False}
    try:
        url = f"{endpoint.root_url}/tokenize"
        async with session.post(url, json=body, headers=endpoint.headers) as response:
            if response.status == 200:
                ids = (await response.json())["tokens"]
                return sorted({int(i) for i in ids})
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        pass
    return list(range(100, 200))


async def _complete(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    prompt: object,
    more: Mapping[str, object],
) -> dict[str, Any] | None:
    """A one-token completion; None when it is refused as bad input."""
    body = {"model": endpoint.model, "prompt": prompt, "max_tokens": 1, **more}
    url = f"{endpoint.base_url}/completions"
    try:
        async with session.post(url, json=body, headers=endpoint.headers) as response:
            if response.status in (400, 422):
                return None
            if response.status != 200:
                text = (await response.text())[:300]
                raise BadInput(f"{url} answers {response.status}: {text}", field="--url")
            answer: dict[str, Any] = await response.json()
            return answer if answer.get("usage") else None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise BadInput(f"can't use {url}: {error!r}", field="--url") from error
