"""Which replica has seen this session, or the beginning of this prompt."""

from collections import OrderedDict

FIRST_CHARS = 512


def prefix_keys(
    text: str, *, tokens_per_char: float, adapter: str = ""
) -> tuple[tuple[int, int], ...]:
    """
    (key, tokens) of the text's beginnings of 512, 1024, 2048, ... characters, shortest first; under
    another adapter they are others.

    Doubling keeps the cost at twice the text's length and the number of keys logarithmic.
    """
    keys = []
    size = FIRST_CHARS
    while size <= len(text):
        keys.append((hash(adapter + text[:size]), int(size * tokens_per_char)))
        size *= 2
    return tuple(keys)


class Affinity:
    """The last replica that prefilled each session and prefix; the oldest are forgotten."""

    def __init__(self, *, max_entries: int = 16384) -> None:
        self._max_entries = max_entries
        self._seen: OrderedDict[int | str, tuple[str, int]] = OrderedDict()

    def recall(self, session: str, prefixes: tuple[tuple[int, int], ...]) -> tuple[str, int] | None:
        """(replica, prompt tokens it may still have cached), the session first."""
        if session:
            found = self._seen.get(session)
            if found is not None:
                return found
        for key, num_tokens in reversed(prefixes):
            found = self._seen.get(key)
            if found is not None:
                return found[0], num_tokens
        return None

    def remember(
        self,
        replica: str,
        *,
        session: str,
        prefixes: tuple[tuple[int, int], ...],
        num_prompt_tokens: int,
    ) -> None:
        """`replica` has this prompt in its cache now."""
        if session:
            self._put(session, replica, num_prompt_tokens)
        for key, num_tokens in prefixes:
            self._put(key, replica, num_tokens)

    def _put(self, key: int | str, replica: str, num_tokens: int) -> None:
        self._seen[key] = (replica, num_tokens)
        self._seen.move_to_end(key)
        if len(self._seen) > self._max_entries:
            self._seen.popitem(last=False)
