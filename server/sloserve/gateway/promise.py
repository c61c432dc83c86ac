"""
Was the promise kept, as the client saw it: the strict score and the counting rules.

Eligible is every request whose class was resolved, less those that the client cancelled while
every due time so far was kept, and those refused as bad input. Declined, degraded and failed
requests are missed. One output token: TTFT only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sloserve.slo import Promise, TokenDeadlines, answer_due_s


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one request adds to the counters of its class."""

    eligible: bool
    ttft_kept: bool = False
    tpot_kept: bool = False

    @property
    def attained(self) -> bool:
        """Every promise kept."""
        return self.ttft_kept and self.tpot_kept


NOT_COUNTED = Judgement(eligible=False)
MISSED = Judgement(eligible=True)


class StreamJudge:
    """
    Counts the tokens of a streamed answer as they pass.

    With several choices each has its own deadlines, and all must be kept.
    """

    __slots__ = ("_choices", "_promise", "_tpot_kept", "_ttft_kept", "arrival_s", "first_s",
                 "last_s", "num_tokens")  # fmt: skip

    def __init__(self, promise: Promise, *, arrival_s: float) -> None:
        self._promise = promise
        self.arrival_s = arrival_s
        self._choices: dict[int, TokenDeadlines] = {}
        self._ttft_kept = True
        self._tpot_kept = True
        self.first_s: float | None = None
        self.last_s = arrival_s
        self.num_tokens = 0

    def emit(self, at_s: float, *, num_tokens: int, stage: int, choice: int = 0) -> None:
        """`num_tokens` tokens of one stage passed on at `at_s`."""
        deadlines = self._choices.get(choice)
        if num_tokens <= 0:
            return
        left = num_tokens
        if deadlines is None:
            deadlines = TokenDeadlines(self._promise, arrival_s=self.arrival_s)
            self._choices[choice] = deadlines
            self._ttft_kept = deadlines.emit(at_s, stage=stage) and self._ttft_kept
            if self.first_s is None:
                self.first_s = at_s
            left -= 1
        if left:
            self._tpot_kept = deadlines.emit_many(at_s, left, stage=stage) and self._tpot_kept
        self.last_s = at_s
        self.num_tokens += num_tokens

    def finished(self, at_s: float) -> Judgement:
        """The answer ended well. Without a single token it was due like a first one."""
        if not self._choices:
            in_time = at_s <= self.arrival_s + self._promise.ttft_s
            return Judgement(True, in_time, in_time)
        return Judgement(True, self._ttft_kept, self._tpot_kept)

    def cancelled(self, at_s: float) -> Judgement:
        """The client hung up: not counted only if nothing was due that had not come."""
        first_due_s = self.arrival_s + self._promise.ttft_s
        dues_s = [d.due_s for d in self._choices.values()] or [first_due_s]
        in_time = self._ttft_kept and self._tpot_kept and at_s <= min(dues_s)
        return NOT_COUNTED if in_time else MISSED

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None: no token came."""
        return None if self.first_s is None else self.first_s - self.arrival_s

    @property
    def mean_tpot_s(self) -> float | None:
        """Mean seconds per output token of one choice after its first; None: no second token."""
        num_gaps = self.num_tokens - len(self._choices)
        if self.first_s is None or num_gaps <= 0:
            return None
        return (self.last_s - self.first_s) * len(self._choices) / num_gaps


def judge_whole(
    promise: Promise, *, arrival_s: float, done_s: float, choices: Sequence[Sequence[int]]
) -> Judgement:
    """
    An answer that was not streamed: due as a whole, every choice of it.

    `choices` holds, per choice, the number of output tokens of each stage.
    """
    kept = all(
        done_s <= answer_due_s(promise, arrival_s=arrival_s, stages=_expand(stages))
        for stages in choices
    )
    return Judgement(True, kept, kept)


def cancelled_whole(promise: Promise, *, arrival_s: float, at_s: float) -> Judgement:
    """
    Cancelled before a whole answer, or before any answer at all.

    How long it would have become is unknown, so the only due time known is the first token's:
    never flattering.
    """
    return NOT_COUNTED if at_s <= arrival_s + promise.ttft_s else MISSED


def _expand(stages: Sequence[int]) -> list[int]:
    return [stage for stage, count in enumerate(stages) for _ in range(count)]
