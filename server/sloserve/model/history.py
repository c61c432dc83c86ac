"""Which tokens a request has seen, for the penalties."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from sloserve.engine.sampling import SamplingParams


class History:
    """
    The distinct tokens of one request, and how often its output holds each (0: the prompt has it).

    Grows with the request: O(new tokens) a step.
    """

    __slots__ = ("_at", "_num_prompt", "_num_read", "counts", "ids")

    def __init__(self, num_prompt: int) -> None:
        self.ids = array("q")
        self.counts = array("f")
        self._num_prompt = num_prompt
        self._num_read = 0
        self._at: dict[int, int] = {}

    def copied(self) -> "History":
        """One that knows the same and goes its own way: for tokens that may be taken back."""
        twin = History(self._num_prompt)
        twin.ids, twin.counts = self.ids[:], self.counts[:]
        twin._num_read, twin._at = self._num_read, dict(self._at)
        return twin

    def read(self, tokens: Sequence[int]) -> None:
        """Take in what was added to `tokens` since the last call."""
        for position in range(self._num_read, len(tokens)):
            token = tokens[position]
            at = self._at.get(token)
            if at is None:
                at = self._at[token] = len(self.ids)
                self.ids.append(token)
                self.counts.append(0.0)
            if position >= self._num_prompt:
                self.counts[at] += 1.0
        self._num_read = len(tokens)


def penalise(
    logits: Tensor,
    rows: Sequence[int],
    histories: Sequence[History],
    sampling: Sequence[SamplingParams],
) -> None:
    """
    Apply the penalties to rows of logits `(n, vocabulary)`, in place; only tokens seen change.

    Repetition counts prompt and output (it divides a positive logit and multiplies a negative
    one); presence and frequency count the output alone.
    """
    device = logits.device
    sizes = torch.tensor([len(h.ids) for h in histories])
    ids, counts = array("q"), array("f")
    for history in histories:
        ids += history.ids
        counts += history.counts
    at = torch.tensor(rows).repeat_interleave(sizes).to(device)
    tokens = torch.frombuffer(ids, dtype=torch.int64).to(device)
    emitted = torch.frombuffer(counts, dtype=torch.float32).to(device)
    repetition, presence, frequency = (
        torch.tensor(values).repeat_interleave(sizes).to(device)
        for values in (
            [s.repetition_penalty for s in sampling],
            [s.presence_penalty for s in sampling],
            [s.frequency_penalty for s in sampling],
        )
    )
    seen = logits[at, tokens]
    seen = torch.where(seen > 0, seen / repetition, seen * repetition)
    logits[at, tokens] = seen - frequency * emitted - presence * (emitted > 0)
