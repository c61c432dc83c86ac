"""
Drafts out of what was already said: the continuation of the latest place that ends alike.

For the last `LONGEST` .. `SHORTEST` tokens of a request, longest first, the latest earlier place
with the same tokens is looked up in an index of the request's own, and what followed there is
proposed. A proposal that reaches the end of the text goes on with itself: loops go on turning.
"""

from collections.abc import Sequence

from sloserve.scheduler import Proposal

LONGEST, SHORTEST = 3, 1
"""Tokens that must agree; the number of them is the proposal's grade."""
READ_TOKENS = 512
"""Taken into an index in one proposal, at most: half a millisecond, and proposals stand between
two steps. A long prompt takes several, in which nothing is proposed."""


class _Index:
    """Where each n-gram of one request was last seen."""

    __slots__ = ("_after", "_num_read")

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # n-gram: the position after it
        self._num_read = 0

    def read(self, tokens: Sequence[int]) -> bool:
        """
        Take in the n-grams that end before the last token (it must not find itself), as far as
        READ_TOKENS go; whether there are no more.
        """
        after, begin = self._after, max(self._num_read, 1)
        end = min(len(tokens), begin + READ_TOKENS)
        for position in range(begin, end):
            for size in range(SHORTEST, min(LONGEST, position) + 1):
                after[tuple(tokens[position - size : position])] = position
        self._num_read = max(begin, end)
        return end >= len(tokens)

    def find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(the position to continue from, how many tokens agreed); agreed 0: nowhere."""
        for size in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            position = self._after.get(tuple(tokens[-size:]))
            if position is not None:
                return position, size
        return 0, 0


class NgramDrafter:
    """
    Keeps an index per request until `forget`. A proposal takes O(new tokens + its length), of new
    tokens READ_TOKENS at most.
    """

    serial = False

    def __init__(self) -> None:
        self._indices: dict[int, _Index] = {}

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        """At most `most` tokens that may follow; none when nothing was said twice, or is unread."""
        index = self._indices.get(request_id)
        if index is None:
            index = self._indices[request_id] = _Index()
        if not index.read(tokens):
            return Proposal(0)
        start, grade = index.find(tokens)
        if not grade:
            return Proposal(0)
        drafts = list(tokens[start : start + most])
        num_found = len(drafts)
        while len(drafts) < most:
            drafts.append(drafts[len(drafts) - num_found])
        return Proposal(len(drafts), drafts, grade)

    def forget(self, request_id: int) -> None:
        """The request is over."""
        self._indices.pop(request_id, None)
