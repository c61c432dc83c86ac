"""What one chat answer says: thinking, text, calls; as OpenAI's deltas, and as a message."""

from dataclasses import dataclass
from typing import Any

from sloserve.frontend.calling import Calling
from sloserve.frontend.thinking import Splitter, Thinking
from sloserve.http.answers import Json
from sloserve.tools.pieces import CallArguments, CallStart, Content, Piece


@dataclass(frozen=True, slots=True)
class Manner:
    """How the answers to one request are to be read."""

    thinking: Thinking | None = None
    calling: Calling | None = None

    @property
    def plain(self) -> bool:
        """Whether all that comes is text for the reader."""
        return self.thinking is None and self.calling is None


class Speech:
    """One answer; `push` and `finish` give the deltas that are new."""

    def __init__(self, manner: Manner) -> None:
        calling = manner.calling
        self._splitter = None if manner.thinking is None else Splitter(manner.thinking)
        self._calling = calling
        self._parser = None if calling is None else calling.how.new_parser(calling.names)
        self._calls: list[dict[str, Any]] = []
        self._content = ""
        self._thought = ""
        self.num_thinking_tokens = 0

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return bool(self._calls)

    @property
    def settled(self) -> bool:
        """Whether all that comes is text for the reader: then `keep` does, and costs least."""
        return self._parser is None and (self._splitter is None or self._splitter.settled)

    def keep(self, text: str) -> None:
        """More text for the reader."""
        self._content += text

    def push(self, text: str, *, num_new: int) -> list[Json]:
        """The deltas of `text`; `num_new` tokens came with it."""
        if self._splitter is None:
            return self._read(text)
        if self._splitter.thinks:
            self.num_thinking_tokens += num_new
        thought, text = self._splitter.push(text)
        return self._think(thought) + self._read(text)

    def finish(self) -> list[Json]:
        """The deltas of what was held back."""
        deltas: list[Json] = []
        if self._splitter is not None:
            thought, text = self._splitter.finish()
            deltas = self._think(thought) + self._read(text)
        return deltas + (self._tell(self._parser.finish()) if self._parser is not None else [])

    def message(self) -> Json:
        """The whole answer."""
        told: Json = {"role": "assistant", "content": self._content, "refusal": None}
        if self._calls and not self._content:
            told["content"] = None
        if self._thought:
            told["reasoning_content"] = self._thought
        if self._calls:
            told["tool_calls"] = self._calls
        return told

    def _think(self, text: str) -> list[Json]:
        self._thought += text
        return [{"reasoning_content": text}] if text else []

    def _read(self, text: str) -> list[Json]:
        if not text:
            return []
        return self._tell(self._parser.push(text) if self._parser is not None else [Content(text)])

    def _tell(self, pieces: list[Piece]) -> list[Json]:
        deltas: list[Json] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    self._content += text
                    if deltas and "content" in deltas[-1]:
                        deltas[-1]["content"] += text
                    else:
                        deltas.append({"content": text})
                case CallStart(index, name) if self._wanted(index):
                    assert self._calling is not None
                    call = {
                        "id": self._calling.how.call_id(),
                        "type": "function",
                        "function": {"name": name, "arguments": ""},
                    }
                    deltas.append({"tool_calls": [{"index": index, **call}]})
                    self._calls.append({**call, "function": {"name": name, "arguments": ""}})
                case CallArguments(index, text) if self._wanted(index):
                    self._calls[index]["function"]["arguments"] += text
                    more = {"index": index, "function": {"arguments": text}}
                    deltas.append({"tool_calls": [more]})
        return deltas

    def _wanted(self, index: int) -> bool:
        """Whether this call is told: only the first one where several were not asked for."""
        assert self._calling is not None
        return self._calling.several or index == 0
