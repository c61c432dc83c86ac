"""A marker in text that comes in pieces."""

from sloserve.tools.reading import WHITESPACE


class Search:
    """
    Passes text on up to a marker, and holds back what may be its beginning.

    `blanks`: white space before the marker belongs to it, so that is held back as well.
    """

    __slots__ = ("_blanks", "_held", "_marker", "found")

    def __init__(self, marker: str, *, blanks: bool = False) -> None:
        self._marker = marker
        self._blanks = blanks
        self._held = ""
        self.found = marker
        """The marker as it was found last, with the white space that belonged to it."""

    def push(self, text: str) -> tuple[str, bool, str]:
        """(text before the marker, whether it was found, what follows it)."""
        text = self._held + text
        self._held = ""
        at = text.find(self._marker)
        if at >= 0:
            end = at + len(self._marker)
            before = text[:at].rstrip(WHITESPACE) if self._blanks else text[:at]
            self.found = text[len(before) : end]
            return before, True, text[end:]
        keep = len(text) - overlap(text, self._marker)
        if self._blanks:
            keep = len(text[:keep].rstrip(WHITESPACE))
        self._held = text[keep:]
        return text[:keep], False, ""

    def flush(self) -> str:
        """What is held, when nothing more will come."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, marker: str) -> int:
    """The longest end of `text` that begins `marker`, in characters."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
