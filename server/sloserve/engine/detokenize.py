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
    U+FFFD. Takes one `decode` of about two tokens a token, however long the answer; none for a
    token of whole characters after a clean end, where tokens are context free.
    """

    __slots__ = ("_ids", "_num_shown", "_skip_special", "_start", "_texts", "_tokenizer")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        before: Sequence[int] = (),
        skip_special: bool = True,
        texts: dict[tuple[int, bool], str] | None = None,
    ) -> None:
        """
        `before`: the latest tokens before the first one (the prompt's end). `texts`: those of
        single tokens by (id, skip_special), to be shared by all with this tokenizer.
        """
        self._tokenizer = tokenizer
        self._texts = {} if texts is None else texts
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
        if self._tokenizer.context_free and len(ids) == self._start:
            text = self._text(token_id)
            if REPLACEMENT not in text:
                ids[:] = (token_id,)
                self._start, self._num_shown = 1, len(text)
                return text
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
        ids = self._ids
        return len(self._text(ids[0]) if len(ids) == 1 else self._decode(ids))

    def _text(self, token_id: int) -> str:
        """One token by itself."""
        key = (token_id, self._skip_special)
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = self._decode([token_id])
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)
