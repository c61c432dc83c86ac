"""
Which of those who wait get their promise: Moore-Hodgson over feasibility.

    start from the set selected before
    for r in order of TTFT deadline:
        selected + r feasible                       -> take r
        else some job is late: of those due before it, drop the one of least value per demand
            still infeasible                        -> revert: r is refused, the set stays
            feasible                                -> keep the rest

Dropping may make another late (the clock of its decode starts earlier), so nothing is taken for
granted: every set that is kept was played forward. `too_much_by` answers for a whole set: None
when it is feasible, else the due time by which too much is asked for (inf: by no one time).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What selection must know of one that waits."""

    @property
    def id(self) -> int:
        """Unique."""
        ...

    @property
    def due_s(self) -> float:
        """When its first token is due."""
        ...

    @property
    def density(self) -> float:
        """Value per demand; the least goes first."""
        ...

    @property
    def value(self) -> float:
        """What a kept promise is worth."""
        ...

    @property
    def firm(self) -> bool:
        """Already answered for: must not be dropped."""
        ...


C = TypeVar("C", bound=Candidate)


def select(
    selected: Sequence[C],
    arrivals: Iterable[C],
    too_much_by: Callable[[Sequence[C]], float | None],
) -> tuple[list[C], list[C]]:
    """
    (selected, refused) after `arrivals` asked to join. `selected` must have been accepted.

    Takes one to two calls of `too_much_by` per arrival.
    """
    chosen = list(selected)
    refused: list[C] = []
    for new in sorted(arrivals, key=lambda c: (c.due_s, c.id)):
        more = [*chosen, new]
        late_s = too_much_by(more)
        if late_s is None:
            chosen = more
            continue
        ahead = (c for c in more if not c.firm and c.due_s <= late_s)
        victim = min(ahead, key=lambda c: c.density, default=new)
        if victim is not new and victim.value <= new.value:
            fewer = [c for c in more if c is not victim]
            if too_much_by(fewer) is None:
                chosen = fewer
                refused.append(victim)
                continue
        refused.append(new)
    return chosen, refused
