"""
Judgement: four scores side by side, the first is the one that counts.

1. strict: every token emitted by its due time, zero tolerance.
2. paper: cumulative check every 20 tokens and at the last, 5 % tolerance, origin
   max(arrival + TTFT, first token).
3. mean TPOT: TTFT in time and (last - first)/(n - 1) <= TPOT, as benchmark tools count.
4. p99 inter-token gap, as a smoothness check.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sloserve.slo.classes import Promise
from sloserve.slo.deadlines import TokenDeadlines, answer_due_s

PAPER_PERIOD_TOKENS = 20
PAPER_TOLERANCE = 1.05


@dataclass(frozen=True, slots=True)
class Emission:
    """`num_tokens` tokens of one stage that became visible at `at_s`."""

    at_s: float
    num_tokens: int = 1
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """What became of one request's promise, by each way of judging."""

    strict: bool
    ttft_kept: bool
    tpot_kept: bool  # every token after the first in time (strict)
    paper: bool
    mean_tpot: bool
    ttft_s: float | None  # None: no token ever came
    mean_tpot_s: float | None  # None: fewer than two tokens
    p99_gap_s: float | None
    num_tokens: int


NOTHING_CAME = Scores(False, False, False, False, False, None, None, None, 0)


def score(promise: Promise, *, arrival_s: float, emissions: Sequence[Emission]) -> Scores:
    """The four scores of a streamed answer; `emissions` in order of time."""
    times = [e.at_s for e in emissions for _ in range(e.num_tokens)]
    stages = [e.stage for e in emissions for _ in range(e.num_tokens)]
    if not times:
        return NOTHING_CAME
    deadlines = TokenDeadlines(promise, arrival_s=arrival_s)
    in_time = [deadlines.emit(t, stage=s) for t, s in zip(times, stages, strict=True)]
    first_s, last_s, n = times[0], times[-1], len(times)
    allowed_s = [promise.tpot_s(stage) for stage in stages[1:]]
    gaps = sorted(b - a for a, b in itertools.pairwise(times))
    rounding_s = n * math.ulp(last_s)  # what n additions to a clock reading may be off by
    return Scores(
        strict=all(in_time),
        ttft_kept=in_time[0],
        tpot_kept=all(in_time[1:]),
        paper=_paper(promise, arrival_s=arrival_s, times=times, allowed_s=allowed_s),
        mean_tpot=in_time[0] and last_s - first_s <= math.fsum(allowed_s) + rounding_s,
        ttft_s=first_s - arrival_s,
        mean_tpot_s=(last_s - first_s) / (n - 1) if n > 1 else None,
        p99_gap_s=gaps[math.ceil(0.99 * len(gaps)) - 1] if gaps else None,
        num_tokens=n,
    )


def score_whole(
    promise: Promise, *, arrival_s: float, done_s: float, stages: Sequence[int]
) -> Scores:
    """The scores of an answer that is not streamed: due as a whole (`answer_due_s`)."""
    due_s = answer_due_s(promise, arrival_s=arrival_s, stages=list(stages))
    kept = done_s <= due_s and len(stages) > 0
    return Scores(kept, kept, kept, kept, kept, done_s - arrival_s, None, None, len(stages))


def _paper(
    promise: Promise, *, arrival_s: float, times: Sequence[float], allowed_s: Sequence[float]
) -> bool:
    origin_s = max(arrival_s + promise.ttft_s, times[0])
    if times[0] > arrival_s + promise.ttft_s * PAPER_TOLERANCE:
        return False
    budget_s = 0.0
    for n, (at_s, tpot_s) in enumerate(zip(times[1:], allowed_s, strict=True), start=2):
        budget_s += tpot_s
        checked = n % PAPER_PERIOD_TOKENS == 0 or n == len(times)
        if checked and at_s - origin_s > budget_s * PAPER_TOLERANCE:
            return False
    return True
