"""Which tokens a request has seen, for the penalties."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sloserve.engine.sampling import SamplingParams


class History:
    """
    How often the output holds each token of one request (0: only the prompt has it).

    Costs O(new tokens) a step to keep and O(distinct tokens) to apply.
    """

    def __init__(self, num_prompt: int) -> None:
        self._num_prompt = num_prompt
        self._num_seen = 0
        self._counts: dict[int, int] = {}

    def penalise(self, logits: Tensor, tokens: Sequence[int], sampling: SamplingParams) -> None:
        """
        Apply the penalties to one row of logits `(vocabulary,)`, in place.

        Repetition counts prompt and output (it divides a positive logit and multiplies a
        negative one); presence and frequency count the output alone.
        """
        for position in range(self._num_seen, len(tokens)):
            token = tokens[position]
            emitted = position >= self._num_prompt
            self._counts[token] = self._counts.get(token, 0) + emitted
        self._num_seen = len(tokens)
        ids = torch.tensor(list(self._counts), device=logits.device)
        counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
        seen = logits[ids]
        if sampling.repetition_penalty != 1.0:
            penalty = sampling.repetition_penalty
            seen = torch.where(seen > 0, seen / penalty, seen * penalty)
        seen -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
        logits[ids] = seen
