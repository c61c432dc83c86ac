"""
Whether it pays to ask for drafts at all: learned per group of requests.

    gain(group) = (accepted drafts - drafts * their cost) / times asked         in tokens, fading
    asking costs PROPOSE_S * (tokens of the step / seconds of the step)         in tokens

Looking for a proposal and judging it takes time between two steps, whatever comes of it. Where
answers are sampled most proposals are wrong, and those few that are right may bring less than all
the looking costs: at 8 streams of the small model that is about 1 % of a step.
"""

from collections.abc import Hashable

from sloserve.planner.speculation import Load

PROPOSE_S = 10e-6
"""What asking for and judging drafts of one request costs between two steps."""
MARGIN = 2.0
"""So many times its cost asking must bring: cost and gain are known roughly."""
HOPE, HOPE_WEIGHT = 0.5, 16.0
"""Gain before anything is known, and the times asked that this is worth."""
FADE = 1.0 - 1.0 / 256
"""What is left of a count at the next time asked."""


class _Tally:
    """Faded sums."""

    __slots__ = ("asked", "gained")

    def __init__(self) -> None:
        self.asked, self.gained = HOPE_WEIGHT, HOPE * HOPE_WEIGHT


class Asking:
    """What asking has come to."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Tally] = {}

    def asked(self, group: Hashable) -> None:
        """One request of the group is asked for."""
        tally = self._groups.setdefault(group, _Tally())
        tally.asked = tally.asked * FADE + 1.0
        tally.gained *= FADE

    def came(
        self, group: Hashable, *, num_drafted: int, num_accepted: int, draft_cost: float
    ) -> None:
        """Of `num_drafted` drafts so many were right; one costs `draft_cost` tokens."""
        tally = self._groups.setdefault(group, _Tally())
        tally.gained += num_accepted - num_drafted * draft_cost

    def gain(self, group: Hashable) -> float:
        """Tokens that asking once has brought, its own cost left out."""
        tally = self._groups.get(group)
        return HOPE if tally is None else tally.gained / tally.asked

    def pays(self, group: Hashable, load: Load, *, step_s: float) -> bool:
        """Whether asking is worth its time beside a step of `load` that takes `step_s`."""
        if step_s <= 0.0:
            return True
        return self.gain(group) >= MARGIN * PROPOSE_S * load.num_tokens / step_s
