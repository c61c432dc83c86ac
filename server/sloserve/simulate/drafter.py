"""The drafter of a simulated replica: what its drafts say is not simulated, only if it is right."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sloserve.scheduler import Proposal, Request
from sloserve.simulate.acceptance import AcceptanceProfile, Text


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A request that is here: its text, and the chance of its own."""

    text: Text
    num_prompt: int
    dice: random.Random


class SimDrafter:
    """
    Proposes as many drafts as one likes where the request's text offers any.

    `serial`: a draft model writes them in the step, one after the other, for all at once. Otherwise
    each request that is asked for costs `propose_s` between two steps, whatever comes of it.
    """

    def __init__(
        self,
        acceptance: AcceptanceProfile,
        *,
        serial: bool = False,
        propose_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._acceptance = acceptance
        self.serial = serial
        self._propose_s = propose_s
        self._seed = seed
        self._requests: dict[int, _Drafted] = {}
        self._num_asked = 0

    def begin(self, request: Request) -> None:
        """A request comes; `forget` when it is over."""
        text = self._acceptance.of(request.promise.slo_class, request.id)
        dice = random.Random(f"{self._seed}/{request.id}")
        self._requests[request.id] = _Drafted(text, request.num_prompt, dice)

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        """All of them, or none."""
        self._num_asked += 1
        if self.serial:
            return Proposal(most)
        one = self._requests[request_id]
        place = len(tokens) - one.num_prompt
        if not one.text.offers(place):
            return Proposal(0)
        return Proposal(most, [0] * most, one.text.grade(place))

    def num_right(self, request_id: int, *, num_output: int, num_drafts: int) -> int:
        """How many of the drafts after `num_output` tokens of the answer are right, in a row."""
        one = self._requests[request_id]
        return one.text.num_right(num_output, num_drafts, one.dice)

    def forget(self, request_id: int) -> None:
        """The request is over."""
        self._requests.pop(request_id, None)

    def spent_s(self) -> float:
        """What asking has cost since the last call, in seconds."""
        asked, self._num_asked = self._num_asked, 0
        return 0.0 if self.serial else asked * self._propose_s
