"""
A small model that writes drafts for a large one.

It shares the tokenizer, the block tables and their accounting: page p of its own cache belongs to
whom page p of the large one belongs. What it has computed it remembers per request; the rest (a
whole prompt at first) it catches up with in chunks, and drafts when it has. Drafts are written
one after the other, each for all rows at once.

Nothing here can make an answer wrong: drafts are verified against the very weights they were
drawn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from sloserve.engine.runner import StepRow
from sloserve.model.batch import build_batch
from sloserve.model.draw import best_tokens, invert, weigh
from sloserve.model.kv import KvCache
from sloserve.model.rejection import num_equal
from sloserve.model.runner import forward

CATCH_UP_TOKENS = 512
"""Known tokens that are computed for drafts beside one step, at most; a prompt may take several."""


@dataclass(slots=True)
class _Computed:
    """
    What of a request is in the drafter's cache, in `blocks`: `num_known` tokens, and after them
    the drafts that were computed to write further ones.
    """

    num_known: int = 0
    drafts: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Draft:
    """One row's drafts in the making; `weights` (vocabulary,) each, unless they are certain."""

    row: StepRow
    index: int
    drawn: bool
    tokens: list[int] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)


class DraftModel:
    """
    Fills in the drafts of rows. `model` as `TorchRunner` wants it, with a cache of as many and
    as large pages as the large model's, and that one's `vocab_size`; `max_len` positions at most.

    A request with a seed, or a greedy one, gets the likeliest tokens: its answer is then the one
    it would have without drafts. Others get tokens drawn as they want theirs drawn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        cache: KvCache,
        vocab_size: int,
        max_len: int,
        entropy: int | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self._max_len = max_len
        self._vocab_size = vocab_size
        self._dice = np.random.default_rng(entropy)
        self._computed: dict[int, _Computed] = {}

    def fill(self, rows: Sequence[StepRow]) -> tuple[list[StepRow], dict[int, Tensor]]:
        """
        The rows, those that leave their drafts to the runner with theirs (none while it catches
        up), and by index the weights (drafts, vocabulary) of those that were drawn.
        """
        filled = list(rows)
        wanted = [i for i, row in enumerate(rows) if row.num_drafts and not row.drafts]
        if not wanted:
            return filled, {}
        with torch.inference_mode():
            drafts = self._write([(i, rows[i]) for i in wanted])
        weights: dict[int, Tensor] = {}
        by_index = {draft.index: draft for draft in drafts}
        for i in wanted:
            draft = by_index.get(i)
            tokens = draft.tokens if draft is not None else []
            filled[i] = replace(rows[i], num_drafts=len(tokens), drafts=tokens)
            if draft is not None and draft.drawn:
                weights[i] = torch.stack(draft.weights)
        return filled, weights

    def forget(self, request_id: int) -> None:
        """Drop what is kept of a request."""
        self._computed.pop(request_id, None)

    def close(self) -> None:
        """Give back the memory."""
        self.cache.release()
        del self.model

    def _write(self, wanted: Sequence[tuple[int, StepRow]]) -> list[_Draft]:
        """First what is missing of the known tokens, then a token for all, as often as asked."""
        chunks: list[StepRow] = []
        drafts: list[_Draft] = []
        budget = CATCH_UP_TOKENS
        for index, row in wanted:
            num_known = len(row.tokens)
            if num_known + row.num_drafts > self._max_len or budget <= 0:
                continue
            start = self._valid(row)
            count = min(num_known - start, budget)
            budget -= count
            complete = start + count == num_known
            chunks.append(replace(row, start=start, count=count, sample=complete, num_drafts=0))
            self._note(row, start + count)
            if complete:
                sampling = row.sampling
                greedy = sampling.temperature < 1e-5 or sampling.top_k == 1
                drafts.append(_Draft(row, index, not greedy and sampling.seed is None))
        if not chunks:
            return []
        logits = self._forward(chunks)
        todo = drafts
        while todo:
            self._choose(logits, todo)
            todo = [draft for draft in todo if len(draft.tokens) < draft.row.num_drafts]
            if todo:
                logits = self._forward([self._next(draft) for draft in todo])
        return drafts

    def _next(self, draft: _Draft) -> StepRow:
        """The latest draft as a row that asks for the one after it."""
        row = draft.row
        tokens = [*row.tokens, *draft.tokens]
        self._computed[row.request_id].drafts.append(draft.tokens[-1])
        return replace(row, tokens=tokens, start=len(tokens) - 1, count=1, num_drafts=0)

    def _forward(self, rows: Sequence[StepRow]) -> Tensor:
        """Logits (rows that sample, vocabulary) float32."""
        batch = build_batch(rows, block_size=self.cache.block_size, device=self.cache.device)
        logits = forward(self.model, batch, self.cache)[: len(batch.sampled)].float()
        missing = self._vocab_size - logits.shape[1]  # models pad their vocabularies differently
        return functional.pad(logits, (0, missing), value=-torch.inf)

    def _choose(self, logits: Tensor, drafts: Sequence[_Draft]) -> None:
        """One more token for each."""
        certain = [at for at, draft in enumerate(drafts) if not draft.drawn]
        if certain:
            for at, token_id in zip(certain, best_tokens(logits[certain]), strict=True):
                drafts[at].tokens.append(token_id)
        drawn = [at for at, draft in enumerate(drafts) if draft.drawn]
        if drawn:
            weights = weigh(logits[drawn], [drafts[at].row.sampling for at in drawn])
            weights = weights / weights.sum(-1, keepdim=True)
            tokens = invert(weights, self._dice.random(len(drawn)))
            for at, token_id, weight in zip(drawn, tokens, weights, strict=True):
                drafts[at].tokens.append(token_id)
                drafts[at].weights.append(weight)

    def _valid(self, row: StepRow) -> int:
        """Known tokens but the last whose keys and values are there: same tokens, same pages."""
        computed = self._computed.get(row.request_id)
        if computed is None:
            return 0
        held = list(row.block_table[: len(computed.blocks)])
        same = held == computed.blocks  # as it mostly is
        num_same = len(held) if same else num_equal(held, computed.blocks)
        num_kept = num_equal(row.tokens[computed.num_known :], computed.drafts)
        most = len(row.tokens) - 1, num_same * self.cache.block_size
        return min(computed.num_known + num_kept, *most)

    def _note(self, row: StepRow, num_tokens: int) -> None:
        """The first `num_tokens` known tokens of a row are computed from now on."""
        num_blocks = -(-(len(row.tokens) + row.num_drafts) // self.cache.block_size)
        blocks = list(row.block_table[:num_blocks])
        self._computed[row.request_id] = _Computed(num_tokens, blocks=blocks)
