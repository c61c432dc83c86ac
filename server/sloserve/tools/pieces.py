"""What a tool parser finds in an answer, in its order."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; `index` counts the calls of one answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments' JSON text of call `index`, which has begun."""

    index: int
    text: str


Piece = Content | CallStart | CallArguments


class ToolParser(Protocol):
    """
    Reads one answer as it comes, however it is cut. What is no call comes out as Content, a call
    that breaks off keeps what it had. Text that may yet become a call is held back.
    """

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        ...

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        ...

    def finish(self) -> list[Piece]:
        """What is still held, when nothing more will come."""
        ...
