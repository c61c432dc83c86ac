"""
Calls after a marker: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]` (Mistral), and the
newer `[TOOL_CALLS]name[ARGS]{...}`, again for every call.
"""

import re

from sloserve.tools.pieces import CallArguments, CallStart, Content, Piece
from sloserve.tools.reading import WHITESPACE, CallReader, ValueReader
from sloserve.tools.searching import Search

MARKER = "[TOOL_CALLS]"
ARGS = "[ARGS]"
_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*(?=\{)")
_FIRST = re.compile(r"\s*(?:\[\s*)?(?=\{)")
_UNFINISHED = re.compile(r"\s*\[\s*|\s*[\w.-]*\s*(\[[A-Z_]*(\]\s*\w*\s*(\[[A-Z]*(\]\s*)?)?)?)?")
MAX_NAME = 256
"""Characters after the marker without a call, from which they are text."""


class MistralParser:
    """A `ToolParser`; the two ways of writing are told apart by what follows the marker."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._search = Search(MARKER, blanks=True)
        self._place = "text"
        self._lead = ""  # the marker, where what is held comes right after it
        self._held = ""  # since the marker or the call before, while it may turn out to be no call
        self._call = CallReader()
        self._begun = False
        self._arguments = ValueReader()

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        pieces: list[Piece] = []
        while text:
            match self._place:
                case "text":
                    before, found, text = self._search.push(text)
                    if before:
                        pieces.append(Content(before))
                    if found:
                        self._place, self._lead, self._held = "marked", self._search.found, ""
                case "marked":
                    text = self._after_marker(text, pieces)
                case "list":
                    text = self._in_list(text)
                case "call":
                    text = self._in_call(text, pieces)
                case _:
                    text = self._in_arguments(text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """What is still held."""
        held = self._search.flush()
        if self._place == "marked" or (self._place == "call" and not self._begun):
            held = self._lead + self._held
        return [Content(held)] if held else []

    def _after_marker(self, text: str, pieces: list[Piece]) -> str:
        text, self._held = self._held + text, ""
        if found := _FIRST.match(text):
            return self._begin_call(text, found.end())
        if found := _NAME.match(text):
            self._start(found[1], pieces)
            self._place, self._arguments = "arguments", ValueReader()
            return text[found.end() :]
        if len(text) > MAX_NAME or not _UNFINISHED.fullmatch(text):
            pieces.append(Content(self._lead))
            self._place = "text"
            return text
        self._held = text
        return ""

    def _in_list(self, text: str) -> str:
        """After a call: another one, the end of the list, or text."""
        text, self._held = self._held + text, ""
        rest = text.lstrip(WHITESPACE + ",")
        if not rest:
            self._held = text
            return ""
        if rest[0] == "{":
            self._lead = ""
            return self._begin_call(text, len(text) - len(rest))
        self._place = "text"
        return rest[1:] if rest[0] == "]" else text.lstrip(WHITESPACE)

    def _begin_call(self, text: str, at: int) -> str:
        """A JSON object begins there."""
        self._place, self._call, self._begun = "call", CallReader(), False
        self._held = text[:at]
        return text[at:]

    def _in_call(self, text: str, pieces: list[Piece]) -> str:
        call = self._call
        end = call.push(text)
        self._held += text[:end]
        if not self._begun and call.name is not None and not call.broken:
            self._begun = True
            self._start(call.name, pieces)
        if self._begun and (more := call.take_arguments()):
            pieces.append(CallArguments(self.num_calls - 1, more))
        if call.done:
            self._place, self._held = "list", ""
        elif call.broken:
            self._place = "text"
            if not self._begun:
                pieces.append(Content(self._lead + self._held))
            self._held = ""
        return text[end:]

    def _in_arguments(self, text: str, pieces: list[Piece]) -> str:
        end = self._arguments.push(text, 0)
        pieces.append(CallArguments(self.num_calls - 1, text[:end]))
        if self._arguments.done:
            self._place = "text"
        return text[end:]

    def _start(self, name: str, pieces: list[Piece]) -> None:
        pieces.append(CallStart(self.num_calls, name))
        self.num_calls += 1
