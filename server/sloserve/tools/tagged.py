"""Calls between tags: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen)."""

from sloserve.tools.pieces import CallArguments, CallStart, Content, Piece
from sloserve.tools.reading import WHITESPACE, CallReader
from sloserve.tools.searching import Search

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


class HermesParser:
    """
    A `ToolParser`. What stands between the tags and is no call comes out as it was written, tags
    included; blank lines before and between calls belong to them.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._opening, self._closing = Search(OPEN, blanks=True), Search(CLOSE)
        self._call: CallReader | None = None
        self._begun = False  # the call has its name
        self._written = ""  # since the tag, while it may turn out to be no call
        self._inside = False

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        pieces: list[Piece] = []
        while text:
            if self._call is not None:
                text = self._in_call(text, pieces)
            elif self._inside:  # after the call, or after what broke it: on to the end tag
                _, found, text = self._closing.push(text)
                self._inside = not found
            else:
                before, found, text = self._opening.push(text)
                if before:
                    pieces.append(Content(before))
                if found:
                    self._call, self._begun, self._written = CallReader(), False, ""
        return pieces

    def finish(self) -> list[Piece]:
        """What is still held."""
        held = self._opening.flush()
        if self._call is not None and not self._begun:
            held = self._opening.found + self._written
        return [Content(held)] if held else []

    def _in_call(self, text: str, pieces: list[Piece]) -> str:
        """Read on in a call; returns what follows it."""
        call = self._call
        assert call is not None
        end = call.push(text)
        self._written += text[:end]
        if not self._begun and call.name is not None and not call.broken:
            self._begun = True
            pieces.append(CallStart(self.num_calls, call.name))
            self.num_calls += 1
        if self._begun and (more := call.take_arguments()):
            pieces.append(CallArguments(self.num_calls - 1, more))
        if not (call.done or call.broken):
            return ""
        self._call = None
        self._inside = self._begun
        if not self._begun:
            pieces.append(Content(self._opening.found + self._written))
        self._closing = Search(CLOSE)
        return text[end:].lstrip(WHITESPACE) if self._begun else text[end:]
