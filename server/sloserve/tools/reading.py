"""JSON values and calls read as they come, character by character."""

import json

WHITESPACE = " \t\r\n"
NAME_KEYS = frozenset({"name", "function"})
ARGUMENT_KEYS = frozenset({"arguments", "parameters"})


class ValueReader:
    """The extent of one JSON value that begins with the first character pushed."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_kind", "done")

    def __init__(self) -> None:
        self.done = False
        self._kind = ""  # "text", "nested" or "plain", by the first character
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def nested(self) -> bool:
        """Whether it is an object or an array."""
        return self._kind == "nested"

    def push(self, text: str, start: int) -> int:
        """Where the value ends in `text`, or the text does; `done` tells which."""
        at = start
        while at < len(text) and not self.done:
            if not self._take(text[at]):
                break
            at += 1
        return at

    def _take(self, char: str) -> bool:
        """Whether `char` belongs to the value."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                self.done = self._depth == 0
            return True
        if not self._kind:
            self._kind = {'"': "text", "{": "nested", "[": "nested"}.get(char, "plain")
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif self._kind == "plain":
            self.done = char in ",}]" or char in WHITESPACE
            return not self.done
        elif char in "}]":
            self._depth -= 1
            self.done = self._depth <= 0
        return True


class CallReader:
    """
    One call written as a JSON object: its name, and the text of its arguments as far as it came.

    The keys may come in any order; arguments that come before the name wait for it. Arguments
    that are a string hold their JSON in it.
    """

    __slots__ = ("_arguments", "_given", "_key", "_place", "_raw", "_value", "broken", "done",
                 "name")  # fmt: skip

    def __init__(self) -> None:
        self.name: str | None = None
        self.done = False
        self.broken = False
        """It is no call after all."""
        self._place = "object"
        self._key = ""
        self._raw = ""
        self._value = ValueReader()
        self._arguments = ""
        self._given = False  # some arguments were read

    def push(self, text: str, start: int = 0) -> int:
        """How far `text` was read: to the end of the object, of the text, or to what is wrong."""
        at = start
        while at < len(text) and not (self.done or self.broken):
            at = self._step(text, at)
        return at

    def take_arguments(self) -> str:
        """What came of the arguments since the last call, once the name is known."""
        if self.name is None:
            return ""
        taken, self._arguments = self._arguments, ""
        return taken

    def _step(self, text: str, at: int) -> int:
        char = text[at]
        if self._place not in ("key", "value") and char in WHITESPACE:
            return at + 1
        match self._place:
            case "object" if char == "{":
                self._place = "first key"
            case "first key" | "next key" if char == '"':
                self._begin("key")
                return at
            case "first key" | "next" if char == "}":
                self._end()
            case "next" if char == ",":
                self._place = "next key"
            case "colon" if char == ":":
                self._place = "before value"
            case "before value":
                self._begin("value")
                return at
            case "key" | "value":
                return self._read_value(text, at)
            case _:
                self.broken = True
                return at
        return at + 1

    def _begin(self, place: str) -> None:
        self._place, self._raw, self._value = place, "", ValueReader()

    def _read_value(self, text: str, at: int) -> int:
        end = self._value.push(text, at)
        new = text[at:end]
        streams = self._place == "value" and self._key in ARGUMENT_KEYS and self._value.nested
        if streams:
            self._arguments += new
            self._given = True
        else:
            self._raw += new
        if self._value.done:
            self._finish_value(streamed=streams)
        return end

    def _finish_value(self, *, streamed: bool) -> None:
        is_key = self._place == "key"
        self._place = "colon" if is_key else "next"
        if streamed:
            return
        try:
            value = json.loads(self._raw, strict=False)
        except (ValueError, RecursionError):  # the latter for what a stuck model writes
            self.broken = True
            return
        if is_key:
            self._key = value
        elif self._key in NAME_KEYS and isinstance(value, str):
            self.name = value
        elif self._key in ARGUMENT_KEYS and value is not None:
            self._arguments += value if isinstance(value, str) else self._raw
            self._given = True

    def _end(self) -> None:
        if self.name is None:
            self.broken = True
            return
        self.done = True
        if not self._given:
            self._arguments = "{}"
