"""Rows with drafts as the places where a token is drawn, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from sloserve.engine.runner import Sampled, StepRow
from sloserve.model.rejection import num_equal


@dataclass(frozen=True, slots=True)
class Span:
    """Places [begin, begin + len(drafts)] whose drafts were drawn from `weights`, (n, V)."""

    begin: int
    drafts: Sequence[int]
    weights: Tensor  # on the model's device; every row sums to one


class _Ahead(Sequence[int]):
    """Known tokens and the first `count` drafts, without copying either."""

    __slots__ = ("_count", "_drafts", "_known")

    def __init__(self, known: Sequence[int], drafts: Sequence[int], count: int) -> None:
        self._known, self._drafts, self._count = known, drafts, count

    def __len__(self) -> int:
        return len(self._known) + self._count

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            return [*self._known, *self._drafts[: self._count]][at]
        at = at if at >= 0 else at + len(self)
        num_known = len(self._known)
        return self._known[at] if at < num_known else self._drafts[at - num_known]


def places_of(rows: Sequence[StepRow]) -> list[StepRow]:
    """
    A row for every token that is drawn: each row without its drafts, then one per draft that
    takes it, and those before it, for known. `drafts` of a place are those that it counts on.
    """
    places = []
    for row in rows:
        for count in range(1 + len(row.drafts)):
            places.append(
                StepRow(
                    request_id=row.request_id,
                    tokens=_Ahead(row.tokens, row.drafts, count) if count else row.tokens,
                    num_prompt=row.num_prompt,
                    start=row.start + count,
                    count=row.count if not count else 1,
                    block_table=row.block_table,
                    sample=row.sample,
                    sampling=row.sampling,
                    num_drafts=count,
                    drafts=row.drafts[:count],
                )
            )
    return places


def fold(rows: Sequence[StepRow], drawn: Sequence[Sampled]) -> list[Sampled]:
    """One outcome per row from what was drawn at its places: drafts count while they agree."""
    outcomes, at = [], 0
    for row in rows:
        num = len(row.drafts)
        if not num:
            outcomes.append(drawn[at])
            at += 1
            continue
        tokens = [one.token_id for one in drawn[at : at + num]]
        kept = num_equal([token for token in tokens if token is not None], row.drafts)
        last = drawn[at + kept]
        last.accepted, last.num_drafted = tuple(drawn[at : at + kept]), num
        outcomes.append(last)
        at += 1 + num
    return outcomes
