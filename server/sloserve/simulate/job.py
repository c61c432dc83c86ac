"""One simulated request on its way: what the cluster knows of it."""

from dataclasses import dataclass, field, replace

from sloserve.load.records import Ending, Record
from sloserve.load.trace import Arrival
from sloserve.scheduler import Outcome, Request
from sloserve.slo import Decision, Emission, Promise

NEXT = Outcome(token_id=0)
LAST = Outcome(token_id=0, finished=True)


@dataclass(slots=True, eq=False)
class Job:
    """A request with its true length; `times_s` are emissions at the replica."""

    number: int
    arrival: Arrival
    promise: Promise
    thinking_tokens: int  # of the answer, in the first of several stages
    times_s: list[float] = field(default_factory=list)
    decision: Decision | None = None
    reason: str = ""
    hops: int = 0
    exclude: set[str] = field(default_factory=set)
    replica: str = ""
    ended_s: float | None = None

    def outcome(self) -> Outcome:
        """What sampling its next token gives."""
        number = len(self.times_s) + 1
        finished = number >= self.arrival.output_tokens
        if not self.thinking_tokens:
            return LAST if finished else NEXT
        return Outcome(
            token_id=0,
            finished=finished,
            stage=0 if number <= self.thinking_tokens else 1,
            next_stage=1 if number == self.thinking_tokens else None,
        )

    def outcomes(self, at_s: float, *, num_drafted: int, num_accepted: int) -> Outcome:
        """What a step that ends at `at_s` gives: accepted drafts up to the end, then a token."""
        if not num_drafted:
            one = self.outcome()
            self.times_s.append(at_s)
            return one
        found: list[Outcome] = []
        while len(found) <= num_accepted and not (found and found[-1].finished):
            found.append(self.outcome())
            self.times_s.append(at_s)
        return replace(
            found[-1],
            earlier=tuple(found[:-1]),
            num_drafted=num_drafted,
            num_accepted=num_accepted,
        )

    def request(self, *, max_output: int, oracle: bool, last_hop: bool) -> Request:
        """The same as a replica's scheduler owns it. No prompt shares its tokens with another."""
        return Request(
            id=self.number,
            promise=self.promise,
            arrival_s=self.arrival.t_s,
            tokens=[0] * self.arrival.prompt_tokens,
            num_prompt=self.arrival.prompt_tokens,
            max_output=max_output,
            last_hop=last_hop,
            reuse_prefix=False,
            known_output=self.arrival.output_tokens if oracle else None,
            draft_group=self.promise.slo_class,
        )

    def record(self, *, way_out_s: float, now_s: float) -> Record:
        """What its client saw, `way_out_s` after each emission."""
        if self.ended_s is None:
            ending = Ending.UNFINISHED
        elif self.decision is Decision.DECLINED:
            ending = Ending.REFUSED
        else:
            ending = Ending.FINISHED
        thinking = self.thinking_tokens
        return Record(
            number=self.number,
            slo_class=self.promise.slo_class,
            prompt_tokens=self.arrival.prompt_tokens,
            output_tokens=self.arrival.output_tokens,
            sent_s=self.arrival.t_s,
            ended_s=now_s if self.ended_s is None else self.ended_s,
            ending=ending,
            promise=self.promise,
            decision=self.decision,
            reason=self.reason,
            emissions=[
                Emission(at_s + way_out_s, 1, 1 if thinking and n >= thinking else 0)
                for n, at_s in enumerate(self.times_s)
            ],
            replica=self.replica,
        )
