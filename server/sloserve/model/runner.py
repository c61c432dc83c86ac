"""Steps of an unmodified Hugging Face model over a paged cache."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sloserve.engine.runner import Logprobs, ModelFacts, Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.attention import current_step
from sloserve.model.batch import Batch, kept_tokens, lay_out, place
from sloserve.model.kv import KvCache
from sloserve.model.sampler import Sampler, describe

if TYPE_CHECKING:
    from sloserve.model.drafting import DraftModel  # they run `forward`, too
    from sloserve.model.lora.adapters import Adapters
    from sloserve.model.parallel.ranks import Ranks

PROMPT_ROWS = 256
"""Rows of logits that are widened at once for a prompt's logprobs: of a whole chunk that would be
gigabytes (8,192 rows of 150,000 in float32, twice)."""


def forward(model: PreTrainedModel, batch: Batch, cache: KvCache) -> Tensor:
    """Logits (S, vocabulary) of the tokens in `batch.keep`; writes keys and values to `cache`."""
    with current_step(batch, cache):
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=kept_tokens(batch),
        )
    logits: Tensor = output.logits[0]
    return logits


class TorchRunner:
    """
    The `Runner` over transformers: every row of a step in one forward pass of shape [1, T].

    `model` is in eval mode and set to the attention of `sloserve.model.attention`. One thread at
    a time may step. `last_forward_s` is the part of the last step spent in the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        cache: KvCache,
        facts: ModelFacts,
        defaults: SamplingParams | None = None,
        drafter: "DraftModel | None" = None,
        adapters: "Adapters | None" = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.facts = facts
        self.last_forward_s = 0.0
        self.defaults = defaults or SamplingParams()
        """What the model recommends where a request says nothing (generation_config.json)."""
        self._sampler = Sampler(eos_ids=facts.eos_ids)
        self.drafter = drafter
        """Writes the drafts of rows that leave them to the runner."""
        self.adapters = adapters
        """What rows may ask for by name (`StepRow.adapter`)."""
        self._forward = forward if adapters is None else adapters.forward
        self.ranks: Ranks | None = None
        """The other processes that hold parts of the model, if it is in parts."""
        self.owns_ranks = True

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        """One forward pass over one ragged batch; the outcomes in the order of `rows`."""
        with torch.inference_mode():
            weights: dict[int, Tensor] = {}
            if self.drafter is not None:
                rows, weights = self.drafter.fill(rows)
            batch, logits = self._compute(rows)
            batch.weights = weights
            return self._outcomes(rows, batch, logits)

    def forget(self, request_id: int) -> None:
        """Drop what is kept of a finished or cancelled request."""
        self._sampler.forget(request_id)
        if self.drafter is not None:
            self.drafter.forget(request_id)

    def close(self) -> None:
        """Give back the memory; no step may follow."""
        self.cache.release()
        if self.drafter is not None:
            self.drafter.close()
        del self.model
        if self.ranks is not None:
            (self.ranks.close if self.owns_ranks else self.ranks.release)()

    def _compute(self, rows: Sequence[StepRow]) -> tuple[Batch, Tensor]:
        """The batch of `rows` and its logits (S, vocabulary)."""
        layout = lay_out(rows, block_size=self.cache.block_size)
        together = nullcontext() if self.ranks is None else self.ranks.step(layout)
        with together:
            batch = place(layout, device=self.cache.device)
            start_s = time.perf_counter()
            logits = self._forward(self.model, batch, self.cache)
        self.last_forward_s = time.perf_counter() - start_s
        return batch, logits

    def _outcomes(self, rows: Sequence[StepRow], batch: Batch, logits: Tensor) -> list[Sampled]:
        prompts = self._prompt_logprobs(rows, batch, logits) if batch.prompts else {}
        drawn = [rows[i] for i in batch.sampled]
        num_drawn = len(drawn) + sum([len(row.drafts) for row in drawn])
        if num_drawn > len(drawn):
            weights = {
                at: batch.weights[i] for at, i in enumerate(batch.sampled) if i in batch.weights
            }
            sampled = self._sampler.verify(logits[:num_drawn], drawn, weights)
        else:
            sampled = self._sampler.sample(logits[:num_drawn], drawn) if drawn else []
        if len(drawn) == len(rows) and not prompts:
            return sampled
        by_row = dict(zip(batch.sampled, sampled, strict=True))
        nothing = Sampled()
        outcomes = [by_row.get(i, nothing) for i in range(len(rows))]
        for i, told in prompts.items():
            outcomes[i] = replace(outcomes[i], prompt=told)
        return outcomes

    @staticmethod
    def _prompt_logprobs(
        rows: Sequence[StepRow], batch: Batch, logits: Tensor
    ) -> dict[int, tuple[Logprobs, ...]]:
        told: dict[int, tuple[Logprobs, ...]] = {}
        at = sum([1 + len(rows[i].drafts) for i in batch.sampled])
        for i, count in batch.prompts:
            row, found = rows[i], []
            most, begin = row.sampling.prompt_logprobs or 0, row.start + 1
            for done in range(0, count, PROMPT_ROWS):
                num = min(PROMPT_ROWS, count - done)
                found += describe(
                    logits[at + done : at + done + num].float().log_softmax(-1),
                    row.tokens[begin + done : begin + done + num],
                    [most] * num,
                )
            told[i] = tuple(found)
            at += count
        return told
