"""One step: what it computes, and what came of it."""

from dataclasses import dataclass

from sloserve.perf import StepModel
from sloserve.planner import Tier
from sloserve.scheduler.request import Request


@dataclass(slots=True, eq=False)
class BatchRow:
    """
    A request's part of a step: tokens[start : start + count] are computed. A value, not frozen
    only because that makes the making of it four times slower.

    `sample`: the last of them is the last known token, so the step draws a new one.
    `decodes`: the one token is the latest that was emitted.
    """

    request: Request
    start: int
    count: int
    sample: bool
    decodes: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """
    The rows of one step and what they amount to, in the step model's terms.

    `predicted_s` is the corrected model's word on these rows, `stored_s` the stored profile's.
    """

    rows: list[BatchRow]
    planned_s: float  # when it was planned, on the scheduler's clock
    predicted_s: float
    stored_s: float
    num_tokens: int  # m
    num_decodes: int
    num_best_effort_tokens: int
    context: int  # K: keys that the decodes attend to
    pairs: float  # A: attention pairs of the prefill chunks


@dataclass(slots=True)
class Outcome:
    """
    What a step gave one request. `token_id` None: the prefill goes on. A value, like `BatchRow`.

    `stage` is the token's own stage; `next_stage` is given when the token ended its stage.
    """

    token_id: int | None = None
    finished: bool = False
    stage: int = 0
    next_stage: int | None = None


def make_batch(rows: list[BatchRow], *, model: StepModel, ratio: float, planned_s: float) -> Batch:
    """The batch of some rows; `model` is the stored profile's, `ratio` its online correction."""
    num_tokens, num_decodes, num_best_effort_tokens, context, pairs = 0, 0, 0, 0, 0.0
    best_effort = Tier.BEST_EFFORT
    for row in rows:  # per row and step: kept lean
        count = row.count
        num_tokens += count
        if row.decodes:
            num_decodes += 1
            context += row.start + 1
        else:
            pairs += count * (row.start + count / 2)
        if row.request.tier is best_effort:
            num_best_effort_tokens += count
    stored_s = model.step_s(num_tokens, context=context, pairs=pairs)
    return Batch(
        rows=rows,
        planned_s=planned_s,
        predicted_s=stored_s * ratio,
        stored_s=stored_s,
        num_tokens=num_tokens,
        num_decodes=num_decodes,
        num_best_effort_tokens=num_best_effort_tokens,
        context=context,
        pairs=pairs,
    )
