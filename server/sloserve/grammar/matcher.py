"""Where one answer stands in its grammar, and which tokens may come next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Grammar:
    """A compiled grammar. Not changed by use: any number of answers follow it, in any threads."""

    __slots__ = ("_beginning", "_eos_ids")

    def __init__(self, beginning: "LLMatcher", *, eos_ids: Sequence[int]) -> None:
        self._beginning = beginning
        self._eos_ids = frozenset(eos_ids)

    def matcher(self) -> "Matcher":
        """A matcher at the beginning of an answer; takes microseconds."""
        return Matcher(self._beginning.deep_copy(), eos_ids=self._eos_ids)


class Matcher:
    """
    One answer's place in a grammar; one thread at a time.

    `accept` every token that was really emitted, in order. What was accepted stays: an answer
    that is preempted and computed again goes on with the same matcher. A mask is a row of bits,
    bit i of byte i // 8 (least significant first) for token i: set if it may come next. It
    covers at least the model's vocabulary, and has the end tokens where the answer may end.

    Speculation: `num_worth` says how many drafts are worth verifying, `masks` and `mask(after=)`
    give the rows of the places to sample; none moves the matcher. Then `accept` what was kept.
    """

    __slots__ = ("_eos_ids", "_state", "ended", "failure")

    def __init__(self, state: "LLMatcher", *, eos_ids: frozenset[int]) -> None:
        self._state = state
        self._eos_ids = eos_ids
        self.ended = False
        """Nothing may follow: the grammar is complete, or an end token was accepted."""
        self.failure = ""
        """Why the grammar can't go on (it grew past a limit, or met a token outside); final."""

    def mask(self, *, after: Sequence[int] = ()) -> bytes:
        """
        The tokens that may come next, or `after` these drafts: nothing, where they end the answer
        or don't fit. Takes about 50 µs; at hard places milliseconds.
        """
        if after:
            rows = self.masks(after)
            return rows[-1] if len(rows) == len(after) + 1 else bytes(len(rows[0]))
        mask: bytes = self._state.compute_bitmask()
        self._look_for_failure()
        return mask

    def masks(self, drafts: Sequence[int]) -> list[bytes]:
        """
        The rows for the next token and for the one after each draft, as long as the drafts fit:
        1 to len(drafts) + 1 of them. A draft without a row after it ends the answer or breaks it.
        """
        rows = [self.mask()]
        if self.failure or self.ended:
            return rows
        ahead = self._state.deep_copy()  # a limit that drafts run into is no failure of ours
        for draft in drafts[: self.num_worth(drafts)]:
            if not ahead.consume_token(draft):
                break
            row: bytes = ahead.compute_bitmask()
            if ahead.is_error():
                break
            rows.append(row)
        return rows

    def num_fitting(self, drafts: Sequence[int]) -> int:
        """How many of these tokens, from the first on, could come next one after the other."""
        return int(self._state.validate_tokens(list(drafts)))

    def num_worth(self, drafts: Sequence[int]) -> int:
        """How many of these tokens are worth verifying: as `num_fitting`, but no end."""
        num = self.num_fitting(drafts)
        return next((i for i in range(num) if drafts[i] in self._eos_ids), num)

    def accept(self, token_id: int) -> None:
        """`token_id` was emitted; one that does not fit is a `failure`."""
        if self.ended or self.failure:
            return
        if token_id in self._eos_ids:
            self.ended = True
            return
        self._state.consume_token(token_id)
        self._look_for_failure()
        self.ended = not self.failure and self._state.is_stopped()

    def is_end(self, token_id: int) -> bool:
        """Whether this token ends answers."""
        return token_id in self._eos_ids

    def _look_for_failure(self) -> None:
        if self._state.is_error() and not self.failure:
            self.failure = first_line(self._state.get_error()) or "it can't go on"


def first_line(error: str) -> str:
    """What a person can use of llguidance's message; its state is for its developers."""
    return " ".join(error.partition("<state>")[0].split())
