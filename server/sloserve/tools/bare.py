"""Calls that are the whole answer: `{"name": ..., "parameters": {...}}; {...}` (Llama 3)."""

from collections.abc import Collection

from sloserve.tools.pieces import CallArguments, CallStart, Content, Piece
from sloserve.tools.reading import WHITESPACE, CallReader

TAG = "<|python_tag|>"


class LlamaParser:
    """
    A `ToolParser`. An answer that does not begin with a call (after `<|python_tag|>`, perhaps) is
    text to its end, and so is JSON that names no known function: it may be what was asked for.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.num_calls = 0
        self._names = frozenset(names)
        self._held = ""  # before a call has begun: all that came since the last one
        self._call: CallReader | None = None
        self._begun = False
        self._plain = False  # the rest is text

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        pieces: list[Piece] = []
        while text and not self._plain:
            text = self._read(text, pieces)
        if text:
            pieces.append(Content(text))
        return pieces

    def finish(self) -> list[Piece]:
        """What is still held."""
        held, self._held = self._held, ""
        if self._begun or (self.num_calls and not held.strip(WHITESPACE + ";")):
            return []
        return [Content(held)] if held else []

    def _read(self, text: str, pieces: list[Piece]) -> str:
        if self._call is None:
            return self._before_call(text)
        call = self._call
        end = call.push(text)
        if not self._begun:
            self._held += text[:end]
            if call.broken or (call.name is not None and call.name not in self._names):
                return self._no_call(text[end:])
            if call.name is None:
                return ""
            self._begun, self._held = True, ""
            pieces.append(CallStart(self.num_calls, call.name))
            self.num_calls += 1
        if more := call.take_arguments():
            pieces.append(CallArguments(self.num_calls - 1, more))
        if call.done or call.broken:
            self._call, self._begun = None, False
        return text[end:]

    def _before_call(self, text: str) -> str:
        """Between calls, or before the first: only white space, `;` and the tag may stand here."""
        text, self._held = self._held + text, ""
        rest = text.lstrip(WHITESPACE + (";" if self.num_calls else ""))
        if rest.startswith(TAG):
            rest = rest[len(TAG) :].lstrip(WHITESPACE)
        if not rest or (TAG.startswith(rest) and rest != TAG):
            self._held = text
            return ""
        if rest[0] != "{":
            return self._no_call(text)
        self._held = text[: len(text) - len(rest)]
        self._call = CallReader()
        return rest

    def _no_call(self, text: str) -> str:
        whole, self._held = self._held + text, ""
        self._plain, self._call = True, None
        return whole if self.num_calls else whole.removeprefix(TAG)
