"""Server-sent events on their way through: annotations counted and stripped."""

import json

from sloserve.http.answers import encode
from sloserve.http.sse import DONE, event
from sloserve.wire import parse_annotation, split_annotations

MAX_EVENT_BYTES = 4 * 1024 * 1024


class Died(Exception):
    """The replica broke its answer."""


Mark = tuple[int, int, int]
"""Tokens, their stage, their choice."""


class Stripper:
    """
    Cuts a byte stream into whole events and takes the annotations out.

    `several`: the answer has more than one choice, and events are parsed to tell which.
    """

    __slots__ = ("_several", "_tail", "done", "failed", "last")

    def __init__(self, *, several: bool = False) -> None:
        self._several = several
        self._tail = b""
        self.done = False
        """The end mark passed."""
        self.failed = False
        """The replica itself told of an error."""
        self.last = b""
        """The latest events that passed."""

    def feed(self, data: bytes) -> tuple[bytes, list[Mark]]:
        """Events to pass on now, and the tokens in them. Holds back an unfinished event."""
        if self._tail:
            data = self._tail + data
        if data.endswith(b"\n\n"):
            self._tail = b""
        else:
            end = data.rfind(b"\n\n") + 1
            self._tail = data[end + 1 :] if end else data
            if len(self._tail) > MAX_EVENT_BYTES:
                raise Died(f"an event of more than {MAX_EVENT_BYTES} bytes")
            if not end:
                return b"", []
            data = data[: end + 1]
        events, pairs = split_annotations(data)
        if events.endswith(DONE):
            self.done = True
        if b'"error"' in events and (
            b'"finish_reason":"error"' in events or b'data: {"error"' in events
        ):
            self.failed = True
        self.last = events
        if self._several and pairs:
            return events, _with_choices(data)
        return events, _together(pairs)


def _together(pairs: list[tuple[int, int]]) -> list[Mark]:
    """Tokens of one stage in a row, as one mark: they came at the same time."""
    if len(pairs) == 1:
        return [(*pairs[0], 0)]
    marks: list[Mark] = []
    for count, stage in pairs:
        if marks and marks[-1][1] == stage:
            marks[-1] = (marks[-1][0] + count, stage, 0)
        else:
            marks.append((count, stage, 0))
    return marks


def _with_choices(data: bytes) -> list[Mark]:
    """The marks of annotated events, each with the choice that its event is about."""
    marks: list[Mark] = []
    for block in data.split(b"\n\n"):
        found = None
        for line in block.split(b"\n"):
            if (told := parse_annotation(line)) is not None:
                found = told
            elif found is not None and line.startswith(b"data:"):
                marks.append((*found, _choice(line[5:])))
                found = None
    return marks


def _choice(data: bytes) -> int:
    try:
        return int(json.loads(data)["choices"][0]["index"])
    except (ValueError, KeyError, IndexError, TypeError):
        return 0


def error_event(last: bytes, *, message: str, code: str, num_choices: int, chat: bool) -> bytes:
    """
    The event that ends a broken stream: `finish_reason: "error"` and an error object.

    Id, time and model come from `last`, the events that passed before it.
    """
    head: dict[str, object] = {}
    for line in last.split(b"\n"):
        if line.startswith(b"data: {"):
            try:
                seen = json.loads(line[6:])
            except ValueError:
                continue
            head = {k: seen[k] for k in ("id", "object", "created", "model") if k in seen}
    part: dict[str, object] = {"delta": {}} if chat else {"text": ""}
    choices = [
        {"index": i, **part, "logprobs": None, "finish_reason": "error"} for i in range(num_choices)
    ]
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return event(encode({**head, "choices": choices, "error": error}))
