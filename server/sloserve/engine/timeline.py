"""What the latest steps did: for `/debug/steps`, histograms and people."""

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class StepRecord:
    """One step. Times in seconds on the engine's clock. A value, not frozen only for speed."""

    number: int  # counts from 1, without gaps
    planned_s: float  # when planning began
    plan_s: float  # how long planning took
    predicted_s: float
    actual_s: float  # the runner alone
    period_s: float  # from the end of the step before (or from waking up) to the end of this one
    num_rows: int
    num_decodes: int
    num_prefill_tokens: int
    num_best_effort_tokens: int
    context: int
    pairs: float  # attention pairs of the prefill chunks, as the step model counts them
    num_waiting: int
    free_blocks: int
    num_draft_tokens: int = 0  # verified beside the decodes
    num_accepted_drafts: int = 0
    mask_s: float = 0.0  # of `actual_s`: computing the masks of grammars


class Timeline:
    """A ring of the latest steps. One thread writes, any may read."""

    def __init__(self, size: int = 1024) -> None:
        self.num_steps = 0
        """Steps ever recorded: the latest one's number."""
        self._ring: deque[StepRecord] = deque(maxlen=size)

    def add(self, record: StepRecord) -> None:
        """Record the next step."""
        self._ring.append(record)
        self.num_steps = record.number

    def since(self, number: int) -> list[StepRecord]:
        """The steps after `number` that are still in the ring, oldest first."""
        wanted = self.num_steps - number
        if wanted <= 0:
            return []
        return [record for record in self._ring.copy() if record.number > number]
