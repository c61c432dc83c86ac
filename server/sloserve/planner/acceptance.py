"""
How likely a drafted token is accepted: learned online, per request and position.

    alpha(r, j) = (accepted(r, j) + WEIGHT * alpha(group, j)) / (tried(r, j) + WEIGHT)

j counts the drafts of one step from 0; a draft is tried only when all before it were accepted. The
group (class and temperature, and how good the drafter thought its proposal was: `grade`) is the
prior of a request; its own prior is what the group knows of the position before, and STARTS before
anything is known. All counts fade: an answer that stops copying is noticed after a few steps.
"""

from collections.abc import Hashable

STARTS = (0.5, 0.2, 0.35)
"""Of a first draft before anything is known, by grade; the first is that of every other grade.
Hopeful, or nothing would ever be tried."""
WEIGHT = 3.0
"""Observations that the group's word is worth."""
START_WEIGHT = 2.0
"""Observations that a position's first guess is worth in its group."""
FADE = 0.9
GROUP_FADE = 0.98
"""What is left of a count at the next one: windows of about 10 and 50 drafts."""
IDLE_FADE = 0.98
"""The same per step in which a request was not drafted for."""


class _Tally:
    """Faded counts of accepted and tried drafts."""

    __slots__ = ("accepted", "tried")

    def __init__(self) -> None:
        self.accepted = 0.0
        self.tried = 0.0

    def add(self, accepted: bool, fade: float) -> None:
        self.accepted = self.accepted * fade + accepted
        self.tried = self.tried * fade + 1.0


class Acceptance:
    """What drafts have come to. A request is known until `forget`."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, list[_Tally]] = {}
        self._requests: dict[int, dict[int, list[_Tally]]] = {}  # by id and grade, per position

    def observe(
        self, request_id: int, group: Hashable, *, grade: int, num_drafted: int, num_accepted: int
    ) -> None:
        """Of `num_drafted` drafts of one step the first `num_accepted` were right."""
        assert 0 <= num_accepted <= num_drafted
        own = self._requests.setdefault(request_id, {}).setdefault(grade, [])
        shared = self._groups.setdefault((group, grade), [])
        for position in range(min(num_accepted + 1, num_drafted)):
            right = position < num_accepted
            for tallies, fade in ((own, FADE), (shared, GROUP_FADE)):
                if position == len(tallies):
                    tallies.append(_Tally())
                tallies[position].add(right, fade)

    def idle(self, request_id: int) -> None:
        """A step without drafts: what is known of the request grows old."""
        for tallies in self._requests.get(request_id, {}).values():
            for tally in tallies:
                tally.accepted *= IDLE_FADE
                tally.tried *= IDLE_FADE

    def chances(self, request_id: int, group: Hashable, *, grade: int, num: int) -> list[float]:
        """
        Per draft 0..num-1 the chance that it and all before it are accepted: the product of
        alphas, which never rises.
        """
        own = self._requests.get(request_id, {}).get(grade, ())
        shared = self._groups.get((group, grade), ())
        alpha, chance = STARTS[grade if grade < len(STARTS) else 0], 1.0
        found = []
        for position in range(num):
            if position < len(shared):
                tally = shared[position]
                alpha = (tally.accepted + START_WEIGHT * alpha) / (tally.tried + START_WEIGHT)
            of_request = alpha
            if position < len(own):
                tally = own[position]
                of_request = (tally.accepted + WEIGHT * alpha) / (tally.tried + WEIGHT)
            chance *= of_request
            found.append(chance)
        return found

    def forget(self, request_id: int) -> None:
        """The request is over; its group remembers."""
        self._requests.pop(request_id, None)
