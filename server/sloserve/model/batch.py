"""One step's rows as flat tensors: what the forward pass reads, and where attention looks."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sloserve.engine.runner import StepRow
from sloserve.model.upload import on_device


@dataclass(slots=True)
class Batch:
    """
    Tokens of one step. T = all tokens, S = rows of logits asked for, R = rows.

    Rows are in the order of their tokens: first the decodes (one token each), those with the
    longest context first, then the longer ones. Row r has the tokens [begins[r], begins[r + 1])
    of the batch, after contexts[r] tokens that are in the cache; its pages are
    [page_begins[r], page_begins[r + 1]) of `page_list`, its own tokens' included. The same is in
    `tables`, on the device.
    """

    input_ids: Tensor  # (1, P) int64: T tokens, then padding up to P = padded_size(T)
    positions: Tensor  # (1, P) int64
    slots: Tensor  # (T,) int64: page * block_size + offset, where keys and values are written
    keep: Tensor
    """
    (S,) int64: tokens that get logits, sampled rows first, in the rows' order, each followed by
    its drafts.
    """
    tables: "Tables"
    num_decodes: int
    begins: list[int]  # R + 1
    contexts: list[int]  # R
    page_begins: list[int]  # R + 1
    page_list: list[int]
    first: list[int]  # per row as given: its first token in the batch
    sampled: list[int]  # indices of the rows, as given, that draw a token
    prompts: list[tuple[int, int]]  # (row, number of positions) whose prompt logprobs are asked
    kept: dict[str, object] = field(default_factory=dict)  # of attention paths, for all layers
    adapters: list[str] = field(default_factory=list)
    """Of the R rows, in the order of their tokens; empty where no row has one."""
    weights: dict[int, Tensor] = field(default_factory=dict)
    """By row, (drafts, vocabulary): what its drafts were drawn from, unless they are certain."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The block tables of a step, int64 tensors on the device; see `Batch`."""

    begins: Tensor  # (R + 1,)
    contexts: Tensor  # (R,)
    page_begins: Tensor  # (R + 1,)
    pages: Tensor  # (all pages,)


def kept_tokens(batch: Batch) -> Tensor:
    """
    The tokens that reach the output layer, (S,) or one: with nothing to sample a row is computed
    all the same, since not every model takes an empty index.
    """
    return batch.keep if batch.keep.shape[0] else batch.slots.new_zeros(1)


def padded_size(num_tokens: int) -> int:
    """
    Tokens that a forward pass over `num_tokens` computes: the next of eight sizes per doubling.

    Kernels of matrix products are made per size, and kept: a size never seen costs up to 14 ms
    (5 layers of 256 in bfloat16; 3 ms when it is known). The padding is 3 % on average; up to 16
    tokens there is none.
    """
    grain: int = 1 << max(0, (num_tokens - 1).bit_length() - 4)
    return -(-num_tokens // grain) * grain


def flat_tensor(parts: Sequence[list[int]], *, device: torch.device) -> tuple[Tensor, ...]:
    """int64 tensors of the parts: one tensor, cut into views (one copy to a device)."""
    values: list[int] = []
    for part in parts:
        values += part
    flat = on_device(array("q", values), device)
    return torch.split(flat, [len(part) for part in parts])


@dataclass(slots=True)
class Layout:
    """A step's numbers before they are tensors; the fields are those of `Batch` and `Tables`."""

    ids: list[int]
    positions: list[int]
    slots: list[int]
    keep: list[int]
    begins: list[int]
    contexts: list[int]
    page_begins: list[int]
    pages: list[int]
    num_decodes: int
    first: list[int]
    sampled: list[int]
    prompts: list[tuple[int, int]]
    adapters: list[str] = field(default_factory=list)


def build_batch(rows: Sequence[StepRow], *, block_size: int, device: torch.device) -> Batch:
    """The flat tensors of a step (`lay_out`) on the device."""
    return place(lay_out(rows, block_size=block_size), device=device)


def lay_out(rows: Sequence[StepRow], *, block_size: int) -> Layout:
    """
    The numbers of a step, T tokens in all.

    Prompt logprobs are those of tokens start + 1 .. start + count of a row that lie in its prompt:
    the logits at a position speak of the token after it.

    A draft is a row of one token like any other, over the same pages as the token before it: keys
    and values of the whole step are written before any of them attends.
    """
    single = [i for i, row in enumerate(rows) if row.count == 1]
    longer = [i for i, row in enumerate(rows) if row.count != 1] if len(single) < len(rows) else []
    starts = [row.start for row in rows]
    drafts = [row.drafts for row in rows]
    adapted = any([row.adapter for row in rows])
    ahead = [0] * len(single)  # 0: the row's own token, j: its draft number j
    if any(drafts):
        parts = [(starts[i] + j, i, j) for i in single for j in range(1 + len(drafts[i]))]
        parts.sort(reverse=True)
        single, ahead = [i for _, i, _ in parts], [j for _, _, j in parts]
    else:
        single.sort(key=starts.__getitem__, reverse=True)
    ids: list[int] = []
    slots: list[int] = []
    contexts: list[int] = []
    pages: list[int] = []
    page_begins = [0]
    first = [0] * len(rows)
    at_draft: dict[tuple[int, int], int] = {}  # by row and draft: where it is in the batch
    for at, i in enumerate(single):  # per row and step: kept lean
        row, start, j = rows[i], starts[i], ahead[at]
        if j:
            at_draft[i, j] = at
            ids.append(row.drafts[j - 1])
            start += j
        else:
            first[i] = at
            ids.append(row.tokens[start])
        contexts.append(start)
        page, offset = divmod(start, block_size)
        pages += row.block_table[: page + 1]
        page_begins.append(len(pages))
        slots.append(pages[-1] * block_size + offset)
    positions = contexts.copy()
    begins = list(range(len(single)))
    for i in longer:
        row, end = rows[i], rows[i].start + rows[i].count
        first[i] = len(ids)
        begins.append(len(ids))
        contexts.append(row.start)
        ids += row.tokens[row.start : end]
        positions += range(row.start, end)
        table = row.block_table[: -(-end // block_size)]
        pages += table
        page_begins.append(len(pages))
        for page in range(row.start // block_size, len(table)):
            low = max(row.start, page * block_size)
            high = min(end, (page + 1) * block_size)
            base = (table[page] - page) * block_size
            slots += range(base + low, base + high)
    begins.append(len(ids))
    sampled = [i for i, row in enumerate(rows) if row.sample]
    keep: list[int] = []
    for i in sampled:
        keep.append(first[i] + rows[i].count - 1)
        keep += [at_draft[i, j] for j in range(1, 1 + len(drafts[i]))]
    prompts: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        if row.sampling.prompt_logprobs is not None:
            count = min(row.count, row.num_prompt - 1 - row.start)
            if count > 0:
                prompts.append((i, count))
                keep += range(first[i], first[i] + count)

    padding = [0] * (padded_size(len(ids)) - len(ids))
    ids += padding
    positions += padding
    return Layout(
        ids,
        positions,
        slots,
        keep,
        begins,
        contexts,
        page_begins,
        pages,
        num_decodes=len(single),
        first=first,
        sampled=sampled,
        prompts=prompts,
        adapters=[rows[i].adapter for i in (*single, *longer)] if adapted else [],
    )


def place(layout: Layout, *, device: torch.device) -> Batch:
    """The batch of a layout, by one copy to the device."""
    parts = (
        layout.ids, layout.positions, layout.slots, layout.keep,
        layout.begins, layout.contexts, layout.page_begins, layout.pages,
    )  # fmt: skip
    t_ids, t_positions, t_slots, t_keep, *tables = flat_tensor(parts, device=device)
    return Batch(
        input_ids=t_ids.unsqueeze(0),
        positions=t_positions.unsqueeze(0),
        slots=t_slots,
        keep=t_keep,
        tables=Tables(*tables),
        num_decodes=layout.num_decodes,
        begins=layout.begins,
        contexts=layout.contexts,
        page_begins=layout.page_begins,
        page_list=layout.pages,
        first=layout.first,
        sampled=layout.sampled,
        prompts=layout.prompts,
        adapters=layout.adapters,
    )
