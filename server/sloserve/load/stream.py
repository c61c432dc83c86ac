"""
Tokens in a streamed OpenAI answer, counted as the bytes arrive.

Parsed by looking for a few byte strings: a load client must cost far less than what it loads. JSON
is only read where an event says too little by itself (no running usage, or stages to be found).
"""

import json
from collections.abc import Sequence
from typing import Any

from sloserve.slo import Emission, Stage

COUNT = b'"completion_tokens":'
FINISH = b'"finish_reason":'


class AnswerStream:
    """
    Feed it what was read; it keeps `emissions`, and how the answer ended.

    Tokens per event come from the running usage (`continuous_usage_stats`); without it every
    event with text counts as one token, and `exact` turns False when the final usage disagrees.
    """

    def __init__(self, stages: Sequence[Stage] = ()) -> None:
        self.emissions: list[Emission] = []
        self.finish_reason: str | None = None
        self.error = ""
        self.done = False
        self.num_tokens = 0
        self.exact = True
        self._running_usage: bool | None = None
        self._rest = b""
        self._stages = stages if any(stage.until for stage in stages) else ()
        self._stage = 0
        self._thought = False  # thinking came in a field of its own
        self._tail = ""  # the last characters: a marker may be cut in two

    def feed(self, data: bytes, at_s: float) -> None:
        """Account bytes that arrived at `at_s`."""
        self._rest += data
        *events, self._rest = self._rest.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    self._event(line[5:].strip(), at_s)

    def _event(self, data: bytes, at_s: float) -> None:
        if data == b"[DONE]":
            self.done = True
        elif data.startswith(b'{"error"') or data.startswith(b'{"object":"error"'):
            self.error = _message(data)
        else:
            self._chunk(data, at_s)

    def _chunk(self, data: bytes, at_s: float) -> None:
        told = _number_after(data, COUNT)
        if self._running_usage is None and b'"choices":[]' not in data:
            self._running_usage = told is not None
        if self._running_usage:
            new = max(0, (told or 0) - self.num_tokens)
        else:
            new = 1 if _text(json.loads(data)) else 0
            if told is not None and told != self.num_tokens + new:
                self.exact = False
        event = json.loads(data) if self._stages else {}
        self._find_answer(event)
        stage = self._stage
        self._find_marker(_text(event))
        if new:
            self.num_tokens += new
            self.emissions.append(Emission(at_s, new, stage))
        ended = data.find(FINISH)
        if ended >= 0:
            value = data[ended + len(FINISH) :].lstrip()
            if value.startswith(b'"'):
                self.finish_reason = value[1 : value.index(b'"', 1)].decode()
                if self.finish_reason == "error":
                    self.error = self.error or "the answer ended with finish_reason error"

    def _find_answer(self, event: dict[str, Any]) -> None:
        """A server that tells thinking and answer apart shows no marker between them."""
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("reasoning_content"):
                self._thought = True
            elif self._thought and self._stage == 0 and delta.get("content"):
                self._stage, self._tail = 1, ""

    def _find_marker(self, text: str) -> None:
        marker = self._stages[self._stage].until if self._stage < len(self._stages) else None
        if not marker:
            return
        self._tail += text
        if marker in self._tail:
            self._stage, self._tail = self._stage + 1, ""
        self._tail = self._tail[-len(marker) :]


def _number_after(data: bytes, key: bytes) -> int | None:
    at = data.rfind(key)
    if at < 0:
        return None
    end = at = at + len(key)
    if data[at : at + 1] == b" ":
        end = at = at + 1
    while data[end : end + 1].isdigit():
        end += 1
    return int(data[at:end]) if end > at else None


def _text(event: dict[str, Any]) -> str:
    parts = []
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        parts += [choice.get("text"), delta.get("reasoning_content"), delta.get("content")]
    return "".join(part for part in parts if part)


def _message(data: bytes) -> str:
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
