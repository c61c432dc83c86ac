"""Drafts for the decodes of a step: asked for, decided on, given blocks, and learned from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sloserve.perf import StepModel
from sloserve.planner import Limits, Row, Tier
from sloserve.planner.acceptance import Acceptance
from sloserve.planner.asking import Asking
from sloserve.planner.speculation import (
    Draftable,
    draft_lengths,
    least_chance,
    tokens_due,
    with_trials,
)
from sloserve.scheduler.batch import Batch, BatchRow, Outcome, load_of
from sloserve.scheduler.holdings import Holdings

HEADROOM_SHARE = 0.05
"""Drafts take new blocks only while so much of the pool stays free."""
EXPLORE_STEPS = 64
"""Every so many steps, those that drafts did not pay for get a single one, as far as the step has
room: they may pay now."""
FACTOR_RATE = 0.05
MAX_FACTOR = 1.5
FACTOR_FADE = 0.999
"""What drafted steps take beyond the model's word: how fast it is learned and forgotten."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """
    Up to `num` drafts for one request: `tokens`, or () when the runner writes them itself in the
    step. `grade`: how good the drafter thinks they are; its acceptance is learned apart.
    """

    num: int
    tokens: Sequence[int] = ()
    grade: int = 0

    def cut(self, num_fitting: Callable[[Sequence[int]], int]) -> "Proposal":
        """Without the drafts that are known not to fit; those yet to be written may be any."""
        if not self.tokens:
            return self
        num = num_fitting(self.tokens)
        return self if num == self.num else Proposal(num, self.tokens[:num], self.grade)


class Drafter(Protocol):
    """Where drafts come from. `serial`: each draft takes the runner a step of its own."""

    serial: bool

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        """At most `most` (>= 1) drafts to follow `tokens`."""
        ...

    def forget(self, request_id: int) -> None:
        """The request is over."""
        ...


class RunnerDrafts:
    """The runner has a draft model: as many drafts as one likes, written in the step."""

    serial = True

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        """All of them."""
        return Proposal(most)

    def forget(self, request_id: int) -> None:
        """Nothing is kept here."""


class Speculating:
    """
    Writes drafts into the rows of a planned step, and learns from what came of them.

    With `fixed` every decode gets so many drafts, as far as there are any: a setting for
    comparisons. Otherwise the planner decides per step and request.
    """

    def __init__(
        self, drafter: Drafter, *, max_draft_tokens: int = 8, fixed: int | None = None
    ) -> None:
        self.acceptance = Acceptance()
        self.asking = Asking()
        self.factor = 1.0
        """What steps with drafts take beyond the model's word."""
        self._drafter = drafter
        self.serial = drafter.serial
        self._most = max_draft_tokens if fixed is None else fixed
        self._fixed = fixed is not None
        self._num_steps = self._num_drafted_steps = 0

    def draft(
        self,
        rows: Sequence[BatchRow],
        *,
        holdings: Holdings,
        limits: Limits,
        model: StepModel,
        now_s: float,
        room_s: float,
        margin_s: float,
        max_model_len: int,
    ) -> None:
        """
        Give drafts to the decodes of a step that begins at `now_s` and may last `room_s`;
        `margin_s` is subtracted from due times, `model` is the corrected one.
        """
        decodes = [row for row in rows if row.decodes]
        if not decodes or self._most < 1:
            return
        load = load_of(rows, room_s=room_s, max_tokens=limits.max_batch_tokens)
        step_s = model.step_s(load.num_tokens, context=load.context, pairs=load.pairs)
        next_end_s = now_s + 2 * step_s + margin_s
        self._num_steps += 1
        explores = self._num_steps % EXPLORE_STEPS == 0
        asks = {
            group: self._fixed or explores or self.asking.pays(group, load, step_s=step_s)
            for group in {row.request.draft_group for row in decodes}
        }
        asked = []
        for row in decodes:  # in most steps of sampled answers nobody is asked for: kept lean
            num_needed = _num_needed(row.request.row, by_s=next_end_s)
            if num_needed > 1 or asks[row.request.draft_group]:
                asked.append((row, num_needed))
        if not asked:
            return
        shortest = min([row.start for row in decodes]) + 1
        least = least_chance(load, model, context=shortest)
        offered: dict[int, Proposal] = {}
        draftable: list[Draftable] = []
        spare = holdings.pool.num_free - int(HEADROOM_SHARE * limits.num_blocks)
        for row, num_needed in asked:
            request = row.request
            num_known = request.row.num_known
            room = len(request.blocks) * limits.block_size
            if spare > len(decodes):  # a block more for everyone would not hurt
                room += limits.block_size
            most = min(
                self._most, request.row.max_output - 1, room - num_known,
                max_model_len - num_known - 1,
            )  # fmt: skip
            if most < 1:
                continue
            self.asking.asked(request.draft_group)
            proposal = self._drafter.propose(request.id, request.tokens, most=most)
            if request.num_fitting is not None:
                proposal = proposal.cut(request.num_fitting)
            if not proposal.num:
                continue
            offered[request.id] = proposal
            if not self._fixed:
                one = self._draftable(row, proposal, least, num_needed)
                if one is not None:
                    draftable.append(one)
        if self._fixed:
            counts = {request_id: proposal.num for request_id, proposal in offered.items()}
        else:
            counts = draft_lengths(draftable, load, model, serial=self.serial, factor=self.factor)
            if explores:
                contexts = {
                    row.request.id: row.start + 1 for row in decodes if row.request.id in offered
                }
                counts = with_trials(
                    counts, contexts, load, model, serial=self.serial, factor=self.factor
                )
        num_left = limits.max_batch_tokens - load.num_tokens
        for row in decodes if counts else ():
            count = min(counts.get(row.request.id, 0), num_left)
            if count and holdings.grow(row.request, row.request.row.num_known + count):
                proposal = offered[row.request.id]
                row.num_drafts, row.drafts = count, proposal.tokens[:count]
                row.grade, row.draft_cost = proposal.grade, least
                num_left -= count

    def observe(self, row: BatchRow, outcome: Outcome) -> None:
        """Learn from what came of a row; `outcome` tells how many drafts there were in the end."""
        if outcome.num_drafted:
            self.asking.came(
                row.request.draft_group,
                num_drafted=outcome.num_drafted,
                num_accepted=outcome.num_accepted,
                draft_cost=row.draft_cost,
            )
            self.acceptance.observe(
                row.request.id,
                row.request.draft_group,
                grade=row.grade,
                num_drafted=outcome.num_drafted,
                num_accepted=outcome.num_accepted,
            )
        elif row.decodes:
            self.acceptance.idle(row.request.id)

    def took(self, batch: Batch, actual_s: float) -> None:
        """Learn from the time of a step."""
        if not batch.num_draft_tokens:
            self.factor = 1.0 + (self.factor - 1.0) * FACTOR_FADE
            return
        plain_s = batch.predicted_s / batch.factor
        if plain_s > 0.0:
            self._num_drafted_steps += 1
            rate = max(FACTOR_RATE, 1 / (self._num_drafted_steps + 4))
            seen = min(max(actual_s / plain_s, 1.0 / MAX_FACTOR), MAX_FACTOR)
            self.factor = max(1.0, self.factor + rate * (seen - self.factor))

    def forget(self, request_id: int) -> None:
        """The request is over."""
        self._drafter.forget(request_id)
        self.acceptance.forget(request_id)

    def _draftable(
        self, row: BatchRow, proposal: Proposal, least: float, num_needed: int
    ) -> Draftable | None:
        """A row as the planner sees it; None: it needs no draft, and its first can't pay."""
        request = row.request
        chances, group = self.acceptance.chances, request.draft_group
        if num_needed <= 1:  # per row and step: mostly the end of it
            first = chances(request.id, group, grade=proposal.grade, num=1)
            if first[0] < least:
                return None
        found = chances(request.id, group, grade=proposal.grade, num=proposal.num)
        return Draftable(request.id, row.start + 1, found, num_needed)


def _num_needed(row: Row, *, by_s: float) -> int:
    """Tokens of a row due before `by_s`; 1 without a promise to keep."""
    if row.tier is not Tier.PROMISED or not row.kept:
        return 1
    return tokens_due(row.due_s, row.tpot_s, by_s=by_s)
