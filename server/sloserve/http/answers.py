"""
The answers that OpenAI clients expect, as JSON bytes: whole answers, chunks, usage.

Dicts and `json.dumps`; the chunk that comes with nearly every token is put together from ready
pieces, because encoding it whole takes several times as long.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

from sloserve.slo.service import ModelSpec

Json = dict[str, Any]


def encode(value: object) -> bytes:
    """Compact JSON; half a surrogate pair becomes `?` instead of an exception."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; `num_cached` of the prompt came from the prefix cache."""

    num_prompt: int
    num_output: int
    num_cached: int = 0
    num_thinking: int | None = None  # of the output; None: answers are not split

    def json(self) -> Json:
        """OpenAI's `usage` object."""
        told: Json = {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_output,
            "total_tokens": self.num_prompt + self.num_output,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }
        if self.num_thinking is not None:
            told["completion_tokens_details"] = {"reasoning_tokens": self.num_thinking}
        return told


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural log probability (None: nothing precedes it) and alternatives."""

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer, or the new part of one."""

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    text_offset: int = 0  # characters before `text`, for the offsets of completion logprobs
    said: Json | None = None  # of chat, instead of `text`: a delta, or a whole message


class Answers:
    """Builds what belongs to one request: same id, time and model throughout."""

    def __init__(self, *, request_id: str, model: str, chat: bool) -> None:
        self.chat = chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{request_id}"
        self._created = int(time.time())
        self._model = model
        self._greeted: set[int] = set()
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._chunk_head = encode(self._head(kind))[:-1] + b',"choices":['
        self._plain = '{"index":%d,"delta":{"content":%s}' if chat else '{"index":%d,"text":%s'
        self._plain += ',"logprobs":null,"finish_reason":null}'

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The answer that is not streamed."""
        kind = "chat.completion" if self.chat else "text_completion"
        parts = [self._whole_chat(c) if self.chat else self._completion(c) for c in choices]
        return encode({**self._head(kind), "choices": parts, "usage": usage.json()})

    def chunk(self, choice: Choice, *, usage: Usage | None = None, usage_field: bool) -> bytes:
        """
        One streamed part. `usage_field`: OpenAI sends `usage: null` in every chunk of a stream
        that will end with usage.
        """
        is_plain = choice.logprobs is None and choice.finish_reason is None and choice.said is None
        if is_plain and (not self.chat or choice.index in self._greeted):
            text = self._plain % (choice.index, encode_basestring(choice.text))
            part = text.encode("utf-8", "replace")
        else:
            part = encode(self._chat_delta(choice) if self.chat else self._completion(choice))
        tail = b"]}"
        if usage is not None:
            tail = b'],"usage":' + encode(usage.json()) + b"}"
        elif usage_field:
            tail = b'],"usage":null}'
        return self._chunk_head + part + tail

    def usage(self, usage: Usage) -> bytes:
        """The last chunk: no choices, the usage."""
        return self._chunk_head + b'],"usage":' + encode(usage.json()) + b"}"

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}

    def _whole_chat(self, choice: Choice) -> Json:
        return {
            "index": choice.index,
            "message": choice.said
            or {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _chat_delta(self, choice: Choice) -> Json:
        delta: Json = {"content": choice.text} if choice.said is None else choice.said
        if choice.index not in self._greeted:  # the role comes with the first token, not before
            self._greeted.add(choice.index)
            delta = {"role": "assistant", "content": None, **delta}
        part: Json = {
            "index": choice.index,
            "delta": delta,
            "logprobs": chat_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }
        if choice.finish_reason is not None:
            part["stop_reason"] = choice.stop_reason
        return part

    def _completion(self, choice: Choice) -> Json:
        part: Json = {
            "index": choice.index,
            "text": choice.text,
            "logprobs": completion_logprobs(choice.logprobs, start=choice.text_offset),
            "finish_reason": choice.finish_reason,
        }
        if choice.finish_reason is not None:
            part["stop_reason"] = choice.stop_reason
        return part


def chat_logprobs(logprobs: Sequence[TokenLogprob] | None) -> Json | None:
    """Chat's shape: a list of tokens with their alternatives."""
    if logprobs is None:
        return None

    def entry(text: str, logprob: float | None) -> Json:
        value = -9999.0 if logprob is None else max(logprob, -9999.0)
        return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}

    content = [
        {**entry(t.text, t.logprob), "top_logprobs": [entry(*top) for top in t.top]}
        for t in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(logprobs: Sequence[TokenLogprob] | None, *, start: int) -> Json | None:
    """
    Completion's shape: four parallel lists. `start` is the offset of the first token.

    Of alternatives that read alike the likeliest is kept; the chosen token is always there.
    """
    if logprobs is None:
        return None
    offsets, at, tops = [], start, []
    for token in logprobs:
        offsets.append(at)
        at += len(token.text)
        best: dict[str, float] = {}
        for text, logprob in token.top:
            best.setdefault(text, max(logprob, -9999.0))
        if token.logprob is not None:
            best.setdefault(token.text, max(token.logprob, -9999.0))
        tops.append(best if token.logprob is not None else None)
    return {
        "tokens": [t.text for t in logprobs],
        "token_logprobs": [
            None if t.logprob is None else max(t.logprob, -9999.0) for t in logprobs
        ],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def model_card(model: ModelSpec, name: str, *, max_model_len: int | None, created_s: int) -> Json:
    """
    `GET /v1/models/NAME` of the model or one of its adapters, whose `parent` is the model; `root`
    is where either comes from. `created_s` is Unix time.
    """
    adapter = next((adapter for adapter in model.lora if adapter.name == name), None)
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "sloserve",
        "root": model.source if adapter is None else adapter.source,
        "parent": None if adapter is None else model.served_name,
        "max_model_len": max_model_len,
    }


def model_list(cards: Sequence[Json]) -> Json:
    """`GET /v1/models`."""
    return {"object": "list", "data": list(cards)}
