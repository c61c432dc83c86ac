"""
From logits to tokens, for all rows of a step at once.

Per row, in this order: penalties, logit bias, what may not come (before the minimum length, by
the model's or the request's word, by the grammar's mask); then greedy, or temperature, top-k,
top-p (over what top-k left), min-p, and one draw. Reported logprobs are the model's own: log
softmax of the logits before any of this.
"""

import secrets
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sloserve.engine.runner import Logprobs, Sampled, StepRow
from sloserve.model.chance import seed_state, uniforms
from sloserve.model.cuda_draw import draw_on_device
from sloserve.model.draw import best_tokens, invert, weigh
from sloserve.model.history import History, penalise
from sloserve.model.rejection import keep_or_redraw
from sloserve.model.verify import Span, fold, places_of

KEEP = 0x5DEECE66D
"""Turns a request's state into that of the numbers by which its drafts are kept."""


class _Known:
    """What is kept of one request between steps."""

    __slots__ = ("banned", "greedy", "history", "penalised", "plain", "sampling", "state")

    def __init__(self, row: StepRow, *, state: int, eos_ids: tuple[int, ...]) -> None:
        sampling = row.sampling
        self.sampling = sampling
        self.state = state
        self.greedy = sampling.temperature < 1e-5 or sampling.top_k == 1
        self.penalised = (
            sampling.repetition_penalty != 1.0
            or sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
        )
        self.history = History(row.num_prompt) if self.penalised else None
        ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos_ids))
        self.banned = sorted(ends) if sampling.min_tokens > 0 else []
        self.plain = (
            self.greedy
            and not self.penalised
            and not sampling.logit_bias
            and not self.banned
            and not sampling.suppress
            and not sampling.suppress_first
            and sampling.grammar is None
            and sampling.logprobs is None
        )


class Sampler:
    """
    Draws tokens; keeps a little per request until `forget`.

    A request with a seed gets the same tokens whatever else is in the batch, as far as its logits
    are the same (matrix kernels may differ in the last bits between batch sizes).
    """

    def __init__(self, *, eos_ids: tuple[int, ...], entropy: int | None = None) -> None:
        self._eos_ids = eos_ids
        self._entropy = secrets.randbits(64) if entropy is None else entropy
        self._known: dict[int, _Known] = {}

    def forget(self, request_id: int) -> None:
        """Drop what is kept of a request."""
        self._known.pop(request_id, None)

    def verify(
        self, logits: Tensor, rows: Sequence[StepRow], weights: Mapping[int, Tensor] | None = None
    ) -> list[Sampled]:
        """
        One outcome per row; logits `(len(rows) + drafts, vocabulary)`, each row's own followed by
        those after its drafts. `weights` by index of the row: (drafts, vocabulary), what they were
        drawn from, normalised; the drafts of other rows are certain (`rejection`).
        """
        if all([k.plain for k in self._all_known(rows)]):
            return fold(rows, [Sampled(token_id) for token_id in best_tokens(logits)])
        spans, begin = [], 0
        for i, row in enumerate(rows):
            if weights and i in weights:
                spans.append(Span(begin, row.drafts, weights[i]))
            begin += 1 + len(row.drafts)
        masks, mask_s = _masks(rows, size=logits.shape[1])
        places = places_of(rows)
        drawn = self._choose(logits, places, self._all_known(places), masks, spans)
        sampled = fold(rows, drawn)
        for i, seconds in mask_s.items():
            sampled[i].mask_s = seconds
        return sampled

    def sample(self, logits: Tensor, rows: Sequence[StepRow]) -> list[Sampled]:
        """
        One token per row, none of which has drafts; logits `(len(rows), vocabulary)`, which may be
        overwritten.
        """
        known = self._all_known(rows)
        if all([k.plain for k in known]):
            return [Sampled(token_id) for token_id in best_tokens(logits)]
        masks, mask_s = _masks(rows, size=logits.shape[1])
        sampled = self._choose(logits, rows, known, masks, ())
        for i, seconds in mask_s.items():
            sampled[i].mask_s = seconds
        return sampled

    def _choose(
        self,
        logits: Tensor,
        rows: Sequence[StepRow],
        known: Sequence[_Known],
        masks: dict[int, NDArray[np.bool_]],
        spans: Sequence[Span],
    ) -> list[Sampled]:
        """One token per row; rows may be places of drafts (`places_of`)."""
        logits = logits.float()
        reported = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
        logprobs = logits[reported].log_softmax(-1) if reported else None
        self._adjust(logits, rows, known, masks)
        if all(k.greedy for k in known):
            tokens = best_tokens(logits)
        else:
            tokens = self._draw(logits, rows, known, spans)
        sampled = [Sampled(token_id) for token_id in tokens]
        if logprobs is not None:
            told = describe(
                logprobs,
                [tokens[i] for i in reported],
                [rows[i].sampling.logprobs or 0 for i in reported],
            )
            for i, one in zip(reported, told, strict=True):
                sampled[i].logprobs = one
        return sampled

    def _all_known(self, rows: Sequence[StepRow]) -> list[_Known]:
        known = []
        for row in rows:  # per row and step: kept lean
            k = self._known.get(row.request_id)
            if k is None or k.sampling is not row.sampling:
                k = self._begin(row)
            known.append(k)
        return known

    def _begin(self, row: StepRow) -> _Known:
        seed = row.sampling.seed
        start = self._entropy ^ seed_state(row.request_id) if seed is None else seed
        known = _Known(row, state=seed_state(start), eos_ids=self._eos_ids)
        self._known[row.request_id] = known
        return known

    @staticmethod
    def _adjust(
        logits: Tensor,
        rows: Sequence[StepRow],
        known: Sequence[_Known],
        masks: dict[int, NDArray[np.bool_]],
    ) -> None:
        """
        Penalties, bias and what may not come, in place. Sparse, but for masks `(vocabulary,)` by
        row: they win where nothing else would be left.
        """
        seen: list[tuple[int, History]] = []
        for i, (row, k) in enumerate(zip(rows, known, strict=True)):
            if k.history is not None:
                history = k.history.copied() if row.drafts else k.history
                history.read(row.tokens)
                seen.append((i, history))
        if seen:
            at, histories = zip(*seen, strict=True)
            penalise(logits, at, histories, [rows[i].sampling for i in at])
        for i, (row, k) in enumerate(zip(rows, known, strict=True)):
            sampling = row.sampling
            if sampling.logit_bias:
                ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
                bias = list(sampling.logit_bias.values())
                logits[i, ids] += torch.tensor(bias, dtype=logits.dtype, device=logits.device)
            num_output = len(row.tokens) - row.num_prompt
            refused = [*sampling.suppress, *(() if num_output else sampling.suppress_first)]
            if num_output < sampling.min_tokens:
                refused += k.banned
            mask = masks.get(i)
            if mask is None:
                if refused:
                    logits[i, refused] = -torch.inf
                continue
            kept = mask.copy()
            kept[refused] = False
            out = ~(kept if kept.any() else mask)
            logits[i].masked_fill_(torch.from_numpy(out).to(logits.device), -torch.inf)

    @staticmethod
    def _draw(
        logits: Tensor, rows: Sequence[StepRow], known: Sequence[_Known], spans: Sequence[Span]
    ) -> list[int]:
        drawn = [i for i, k in enumerate(known) if not k.greedy]
        if logits.device.type != "cpu" and not spans:
            return draw_on_device(
                logits,
                [rows[i].sampling for i in drawn],
                drawn=drawn,
                uniform=_uniforms(rows, known, drawn),
            )
        tokens: list[int] = [0] * len(rows)
        if len(drawn) < len(rows):
            tokens = best_tokens(logits)
            logits = logits[drawn]
        uniform = _uniforms(rows, known, drawn)
        weights = weigh(logits, [rows[i].sampling for i in drawn])
        for i, token_id in zip(drawn, invert(weights, uniform), strict=True):
            tokens[i] = token_id
        if spans:
            places = [span.begin + j for span in spans for j in range(len(span.drafts) + 1)]
            order = {place: at for at, place in enumerate(drawn)}
            at = [order[place] for place in places]
            drafted = [(span, j) for span in spans for j in range(len(span.drafts))]
            states = [seed_state(known[span.begin].state ^ KEEP) for span, _ in drafted]
            target = weights[at]
            told = keep_or_redraw(
                target / target.sum(-1, keepdim=True),
                torch.cat([span.weights for span in spans]),
                [span.drafts for span in spans],
                keep=uniforms(states, [_num_output(rows[s.begin + j]) for s, j in drafted]),
                draw=uniform[at],
            )
            for span, (kept, token_id) in zip(spans, told, strict=True):
                tokens[span.begin : span.begin + kept] = span.drafts[:kept]
                tokens[span.begin + kept] = token_id
        return tokens


def _uniforms(
    rows: Sequence[StepRow], known: Sequence[_Known], drawn: Sequence[int]
) -> NDArray[np.float64]:
    return uniforms(
        [known[i].state for i in drawn],
        [_num_output(rows[i]) for i in drawn],
    )


def _num_output(row: StepRow) -> int:
    return len(row.tokens) - row.num_prompt


def _masks(
    rows: Sequence[StepRow], *, size: int
) -> tuple[dict[int, NDArray[np.bool_]], dict[int, float]]:
    """
    By place (`places_of`) of rows that have a grammar the tokens it allows there, `(size,)`, and
    by row what that took in seconds.

    After a draft that the grammar does not allow, or that ends the answer, there are none: what
    is drawn there is never looked at.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    mask_s: dict[int, float] = {}
    place = 0
    for i, row in enumerate(rows):
        matcher = row.matcher
        if matcher is not None:
            start_s = time.perf_counter()
            told = matcher.masks(row.drafts) if row.drafts else [matcher.mask()]
            for at, some in enumerate(told, place):
                bits = np.frombuffer(some, dtype=np.uint8)
                mask = np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)
                if mask.any():
                    masks[at] = mask
            mask_s[i] = time.perf_counter() - start_s
        place += 1 + len(row.drafts)
    return masks, mask_s


def describe(
    logprobs: Tensor, tokens: Sequence[int], alternatives: Sequence[int]
) -> list[Logprobs]:
    """Chosen token and its best alternatives per row of log probabilities `(n, vocabulary)`."""
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None])[:, 0]
    most = min(max(alternatives), logprobs.shape[1])
    values, ids = logprobs.topk(most, dim=-1)
    # one copy from the device; a double holds both
    told = torch.cat((chosen[:, None].double(), values.double(), ids.double()), dim=1).tolist()
    return [
        Logprobs(
            token_id=token,
            logprob=row[0],
            top=tuple(zip(map(int, row[most + 1 : most + 1 + count]), row[1:], strict=False)),
        )
        for token, row, count in zip(tokens, told, alternatives, strict=True)
    ]
