"""The part of an answer in which the model thinks, and the part for the reader."""

from dataclasses import dataclass

from sloserve.engine.tokenizer import Tokenizer
from sloserve.slo import Promise
from sloserve.tools.searching import Search

USUAL_MARKER = "</think>"
NUM_TAIL_TOKENS = 16
"""Of the prompt's end, where a template opens or closes the thinking by itself."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """
    Thinking goes on until `marker`. `begins`: True: from the first token; None: only if the
    answer begins with `opening`.
    """

    marker: str
    begins: bool | None

    @property
    def opening(self) -> str:
        """The tag that goes with the marker; empty: the marker is no closing tag."""
        for closing, opening in (("</", "<"), ("[/", "[")):
            if self.marker.startswith(closing):
                return opening + self.marker.removeprefix(closing)
        return ""


def thinking_of(promise: Promise, prompt: list[int], tokenizer: Tokenizer) -> Thinking | None:
    """
    How the answer to `prompt` will think; None: not at all.

    The marker is that of the class's first stage, which then is taken to be thinking, else the
    usual one if the chat template knows it.
    """
    until = promise.stages[0].until if len(promise.stages) > 1 else None
    if until is None and USUAL_MARKER not in tokenizer.template:
        return None
    thinking = Thinking(until or USUAL_MARKER, begins=True)
    tail = tokenizer.decode(prompt[-NUM_TAIL_TOKENS:], skip_special=False).rstrip()
    if tail.endswith(thinking.marker):  # the template was told to leave it out
        return None
    if until is None and not tail.endswith(thinking.opening):
        return Thinking(thinking.marker, begins=None)
    return thinking


class Splitter:
    """Splits one answer as it comes, however it is cut."""

    __slots__ = ("_held", "_lead", "_opening", "_place", "_search", "_thinking")

    def __init__(self, thinking: Thinking) -> None:
        self._thinking = thinking
        self._opening = thinking.opening
        self._search = Search(thinking.marker)
        self._place = "begin" if self._opening else "thinking"
        self._held = ""
        self._lead = False  # blanks that come next are dropped

    @property
    def thinks(self) -> bool:
        """Whether the coming token is still thinking, as far as is known."""
        if self._place == "begin":
            return self._thinking.begins is True or bool(self._held.strip())
        return self._place == "thinking"

    @property
    def settled(self) -> bool:
        """Whether all that comes is for the reader, as it is."""
        return self._place == "answer" and not self._lead

    def push(self, text: str) -> tuple[str, str]:
        """(thinking, text for the reader) that `text` completes."""
        if self._place == "begin":
            text = self._begin(text)
        thought = ""
        if self._place == "thinking":
            thought, found, text = self._search.push(text)
            thought = self._led(thought)
            if found:
                self._place, self._lead = "answer", True
        return thought, self._led(text) if self._place == "answer" else ""

    def finish(self) -> tuple[str, str]:
        """What is still held, when nothing more will come."""
        held, self._held = self._held, ""
        if self._place == "begin":
            return (held, "") if self._thinking.begins else ("", held)
        return self._search.flush(), ""

    def _begin(self, text: str) -> str:
        """Wait until it is known whether the opening tag comes; returns what follows it."""
        text, self._held = self._held + text, ""
        bare = text.lstrip()
        if bare.startswith(self._opening):
            self._place, self._lead = "thinking", True
            return bare[len(self._opening) :]
        if self._opening.startswith(bare):
            self._held = text
            return ""
        self._place = "thinking" if self._thinking.begins else "answer"
        return text

    def _led(self, text: str) -> str:
        if self._lead:
            text = text.lstrip()
            self._lead = not text
        return text
