"""One step: what it computes, and what came of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from sloserve.perf import StepModel
from sloserve.planner import Tier
from sloserve.planner.speculation import Load
from sloserve.scheduler.request import Request


@dataclass(slots=True, eq=False)
class BatchRow:
    """
    A request's part of a step: tokens[start : start + count] are computed. A value, not frozen
    only because that makes the making of it four times slower.

    `sample`: the last of them is the last known token, so the step draws a new one.
    `decodes`: the one token is the latest that was emitted. A decode may have `num_drafts` drafts
    to verify: `drafts`, or () when the runner writes them; `grade` as in `Proposal`.
    """

    request: Request
    start: int
    count: int
    sample: bool
    decodes: bool
    num_drafts: int = 0
    drafts: Sequence[int] = ()
    draft_cost: float = 0.0  # of one draft, in tokens that the step could yield instead
    grade: int = 0


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
    num_tokens: int  # m, drafts included
    num_decodes: int
    num_best_effort_tokens: int
    context: int  # K: keys that the decodes and their drafts attend to
    pairs: float  # A: attention pairs of the prefill chunks
    num_draft_tokens: int = 0
    num_draft_steps: int = 0  # s: serial steps of a draft model
    factor: float = 1.0  # in both predictions: what drafted steps take beyond the model's word

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of prefill chunks."""
        return self.num_tokens - self.num_decodes - self.num_draft_tokens


@dataclass(slots=True)
class Outcome:
    """
    What a step gave one request. `token_id` None: the prefill goes on. A value, like `BatchRow`.

    `stage` is the token's own stage; `next_stage` is given when the token ended its stage.
    `earlier` holds the accepted drafts that were emitted before the token, in their order.
    `num_accepted` of `num_drafted` drafts were right, whether or not an end cut them off.
    """

    token_id: int | None = None
    finished: bool = False
    stage: int = 0
    next_stage: int | None = None
    earlier: tuple["Outcome", ...] = ()
    num_drafted: int = 0
    num_accepted: int = 0


def load_of(rows: Iterable[BatchRow], *, room_s: float = inf, max_tokens: int = 1 << 30) -> Load:
    """What the rows amount to, their drafts left out."""
    num_tokens, context, pairs = 0, 0, 0.0
    for row in rows:  # per row and step: kept lean
        count = row.count
        num_tokens += count
        if row.decodes:
            context += row.start + 1
        else:
            pairs += count * (row.start + count / 2)
    return Load(num_tokens, float(context), pairs, room_s, max_tokens)


def make_batch(
    rows: list[BatchRow],
    *,
    model: StepModel,
    ratio: float,
    planned_s: float,
    factor: float = 1.0,
    serial: bool = False,
) -> Batch:
    """
    The batch of some rows; `model` is the stored profile's, `ratio` its online correction.

    `factor`: what steps with drafts take beyond the model's word; `serial`: the runner writes
    the drafts, one serial step each.
    """
    load = load_of(rows)
    num_decodes, num_best_effort_tokens, num_drafts, longest = 0, 0, 0, 0
    context = load.context
    best_effort = Tier.BEST_EFFORT
    for row in rows:  # per row and step: kept lean
        num_decodes += row.decodes
        if row.request.tier is best_effort:
            num_best_effort_tokens += row.count + row.num_drafts
        if row.num_drafts:
            num, at = row.num_drafts, row.start + 1
            num_drafts += num
            context += num * at + num * (num + 1) / 2
            longest = max(longest, num)
    num_tokens, num_draft_steps = load.num_tokens + num_drafts, longest if serial else 0
    factor = factor if num_drafts else 1.0
    stored_s = factor * model.step_s(
        num_tokens, context=context, pairs=load.pairs, drafts=num_draft_steps
    )
    return Batch(
        rows=rows,
        planned_s=planned_s,
        predicted_s=stored_s * ratio,
        stored_s=stored_s,
        num_tokens=num_tokens,
        num_decodes=num_decodes,
        num_best_effort_tokens=num_best_effort_tokens,
        context=int(context),
        pairs=load.pairs,
        num_draft_tokens=num_drafts,
        num_draft_steps=num_draft_steps,
        factor=factor,
    )
