"""Text from tokens as they come, without breaking a character and without starting over."""

from collections.abc import Sequence

from sloserve.engine.tokenizer import Tokenizer

REPLACEMENT = "�"
MAX_HELD_TOKENS = 16
"""More tokens than this without a clean end are not an unfinished character (that has at most
four bytes): they are shown as they are."""


class Detokenizer:
    """
    Decodes a window: the tokens since the last clean end, and those before it since the end
    before (they decide about a leading space). A clean end is where the text does not end in
    U+FFFD. Takes one `decode` of about two tokens a token, however long the answer.
    """

    __slots__ = ("_ids", "_lengths", "_num_shown", "_skip_special", "_start", "_tokenizer")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        before: Sequence[int] = (),
        skip_special: bool = True,
        lengths: dict[tuple[int, bool], int] | None = None,
    ) -> None:
        """
        `before`: the latest tokens before the first one (the prompt's end). `lengths`: the
        characters of single tokens by (id, skip_special), to be shared by all with this
        tokenizer.
        """
        self._tokenizer = tokenizer
        self._lengths = {} if lengths is None else lengths
        self._skip_special = skip_special
        self._ids = list(before)  # the window
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT):  # half a character of somebody else's: not ours to finish
            self._ids, text = [], ""
        self._start = len(self._ids)  # where in the window the tokens since the last clean end are
        self._num_shown = len(text)  # characters of the window's text that were given out

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        ids = self._ids
        ids.append(token_id)
        text = self._tokenizer.decode(ids, skip_special=self._skip_special)
        if text.endswith(REPLACEMENT) and len(ids) - self._start <= MAX_HELD_TOKENS:
            stable = text[:-1]  # what precedes the last one is settled, valid or not
            new = stable[self._num_shown :]
            self._num_shown = max(self._num_shown, len(stable))
            return new
        new = text[self._num_shown :]
        del ids[: self._start]
        self._start = len(ids)
        self._num_shown = self._length()
        return new

    def flush(self) -> str:
        """What is still held, when nothing more will come."""
        new = self._decode(self._ids)[self._num_shown :]
        self._num_shown += len(new)
        return new

    def _length(self) -> int:
        """Characters of the window's text."""
        if len(self._ids) != 1:
            return len(self._decode(self._ids))
        key = (self._ids[0], self._skip_special)
        length = self._lengths.get(key)
        if length is None:
            length = self._lengths[key] = len(self._decode(self._ids))
        return length

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)
