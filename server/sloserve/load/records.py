"""What became of one request, and how it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sloserve.slo import NOTHING_CAME, Decision, Emission, Promise, Scores, TokenDeadlines, score


class Ending(StrEnum):
    """How a request ended, as its sender saw it."""

    FINISHED = "finished"
    REFUSED = "refused"  # declined before the first byte: 429, 503
    FAILED = "failed"  # an error, before or inside the answer
    CANCELLED = "cancelled"  # the sender hung up
    UNFINISHED = "unfinished"  # still running when the run ended
    BAD_INPUT = "bad_input"  # any other 4xx: not the service's fault


@dataclass(frozen=True, slots=True)
class Record:
    """
    One request as its sender saw it; times in seconds since the start of the run.

    `promise` is None where nobody told one (a foreign endpoint without classes).
    """

    number: int
    slo_class: str
    prompt_tokens: int
    output_tokens: int  # as asked for
    sent_s: float
    ended_s: float
    ending: Ending
    promise: Promise | None = None
    decision: Decision | None = None
    reason: str = ""
    emissions: Sequence[Emission] = ()
    error: str = ""
    send_lag_s: float = 0.0  # later than planned, by the sender's own fault
    replica: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """
    A record without its token times: what reports need.

    `eligible` and `attained` follow the counting rules: declined, degraded, failed and
    unfinished requests are misses in their class; bad input does not count, and neither does a
    request that its client cancelled while every due time so far was kept.
    """

    slo_class: str
    ending: Ending
    decision: Decision | None
    reason: str
    eligible: bool
    attained: bool
    attained_paper: bool
    attained_mean: bool
    scores: Scores
    prompt_tokens: int
    output_tokens: int
    error: str
    send_lag_s: float

    @property
    def degraded(self) -> bool:
        """Served best-effort."""
        return self.decision is Decision.DEGRADED


def judge(record: Record) -> Judged:
    """The verdict on one request by the counting rules and the scores of `sloserve.slo`."""
    scores = _scores(record)
    eligible = record.ending is not Ending.BAD_INPUT and not _left_content(record)
    counts = (
        eligible
        and record.ending is Ending.FINISHED
        and record.decision not in (Decision.DEGRADED, Decision.DECLINED)
    )
    return Judged(
        slo_class=record.slo_class,
        ending=record.ending,
        decision=record.decision,
        reason=record.reason,
        eligible=eligible,
        attained=counts and scores.strict,
        attained_paper=counts and scores.paper,
        attained_mean=counts and scores.mean_tpot,
        scores=scores,
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        error=record.error,
        send_lag_s=record.send_lag_s,
    )


def _scores(record: Record) -> Scores:
    if record.promise is None or not record.emissions:
        return NOTHING_CAME
    return score(record.promise, arrival_s=record.sent_s, emissions=record.emissions)


def _left_content(record: Record) -> bool:
    """Cancelled by its client with nothing late so far, the token then awaited included."""
    if record.ending is not Ending.CANCELLED:
        return False
    if record.promise is None:
        return True
    deadlines = TokenDeadlines(record.promise, arrival_s=record.sent_s)
    for emission in record.emissions:
        for _ in range(emission.num_tokens):
            deadlines.emit(emission.at_s, stage=emission.stage)
    return deadlines.kept and record.ended_s <= deadlines.due_s
