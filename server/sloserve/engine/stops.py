"""Stop strings: found across chunk borders, never shown by halves."""

from collections.abc import Sequence

from sloserve.tools.searching import overlap


class StopFinder:
    """
    Passes text on, but holds back an end that could be the beginning of a stop string.

    The earliest occurrence wins; of two at the same place, the one listed first.
    """

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include
        self._held = ""

    def push(self, text: str, *, active: bool = True) -> tuple[str, str | None]:
        """
        (text to show now, the stop string that was found). Nothing is to be pushed after a
        find. Not `active` (too few tokens yet): everything passes.
        """
        if not self._stops:
            return text, None
        text = self._held + text
        if not active:
            self._held = ""
            return text, None
        found = min(
            ((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0),
            key=lambda pair: pair[0],
            default=None,
        )
        if found is not None:
            self._held = ""
            at, stop = found
            return text[: at + len(stop) if self._include else at], stop
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What is still held, when nothing more will come."""
        held, self._held = self._held, ""
        return held
