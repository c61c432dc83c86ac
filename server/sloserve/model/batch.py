"""One step's rows as flat tensors: what the forward pass reads, and where attention looks."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sloserve.engine.runner import StepRow

MAX_WASTE = 0.25  # share of a decode group's pages that may be padding
FREE_WASTE_PAGES = 32  # ... or this many pages: copying them costs less than one more call
MAX_GROUP_PAGES = (
    128  # gathered keys and values stay in the processor's cache: 43 -> 22 ms at 32 x 1024
)

Masks = dict[int | None, Tensor | None]


@dataclass(slots=True)
class Decodes:
    """
    Rows of one token each, tokens [begin, end) of the batch, padded to the same number of pages.

    `first_page` is set for a lone row whose pages lie side by side: it needs no gather.
    """

    begin: int
    end: int
    num_pages: int
    num_keys: int  # the longest row's visible keys, its own token included
    equal: bool  # every row has `num_keys` keys
    pages: Tensor  # (num_rows * num_pages,) int64
    lengths: Tensor  # (num_rows,) int64: visible keys per row
    first_page: int | None = None
    masks: Masks = field(default_factory=dict)  # by sliding window


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens [begin, end) of one request, after `context` tokens in the cache."""

    begin: int
    end: int
    context: int
    pages: Tensor  # (num_pages,) int64, the chunk's own included
    first_page: int | None = None
    masks: Masks = field(default_factory=dict)

    @property
    def num_keys(self) -> int:
        """Keys that the last token of the chunk sees."""
        return self.context + self.end - self.begin


@dataclass(slots=True)
class Batch:
    """Tokens of one step, decodes first. T = all tokens, S = rows of logits asked for."""

    input_ids: Tensor  # (1, P) int64: T tokens, then padding up to P = padded_size(T)
    positions: Tensor  # (1, P) int64
    slots: Tensor  # (T,) int64: page * block_size + offset, where keys and values are written
    keep: Tensor  # (S,) int64: tokens that get logits: sampled rows, each followed by its drafts
    decodes: list[Decodes]
    chunks: list[Chunk]
    first: list[int]  # per row: its first token in the batch
    sampled: list[int]  # indices of the rows that draw a token
    prompts: list[tuple[int, int]]  # (row, number of positions) whose prompt logprobs are asked
    weights: dict[int, Tensor] = field(default_factory=dict)
    """By row, (drafts, vocabulary): what its drafts were drawn from, unless they are certain."""


def decode_groups(num_pages: Sequence[int]) -> list[tuple[int, int]]:
    """
    Half-open ranges of rows to attend together, for page counts in descending order.

    Every group wastes at most MAX_WASTE of its padded pages, or FREE_WASTE_PAGES pages, and holds
    at most MAX_GROUP_PAGES unless it is a single row.
    """
    groups, begin, held = [], 0, 0
    for i, pages in enumerate(num_pages):
        padded = (i - begin + 1) * num_pages[begin]
        waste = padded - held - pages
        wasteful = waste > FREE_WASTE_PAGES and waste > MAX_WASTE * padded
        if i > begin and (wasteful or padded > MAX_GROUP_PAGES):
            groups.append((begin, i))
            begin, held = i, 0
        held += pages
    if begin < len(num_pages):
        groups.append((begin, len(num_pages)))
    return groups


def padded_size(num_tokens: int) -> int:
    """
    Tokens that a forward pass over `num_tokens` computes: the next of eight sizes per doubling.

    Kernels of matrix products are made per size, and kept: a size never seen costs up to 14 ms
    (5 layers of 256 in bfloat16; 3 ms when it is known). The padding is 3 % on average; up to 16
    tokens there is none.
    """
    grain: int = 1 << max(0, (num_tokens - 1).bit_length() - 4)
    return -(-num_tokens // grain) * grain


def build_batch(rows: Sequence[StepRow], *, block_size: int, device: torch.device) -> Batch:
    """
    The flat tensors of a step, T tokens in all. One tensor is built and cut into views (one copy
    to a device).

    Prompt logprobs are those of tokens start + 1 .. start + count of a row that lie in its prompt:
    the logits at a position speak of the token after it.

    A draft is a row of one token like any other, over the same pages as the token before it: keys
    and values of the whole step are written before any of them attends.
    """
    single = [i for i, row in enumerate(rows) if row.count == 1]
    longer = [i for i, row in enumerate(rows) if row.count != 1] if len(single) < len(rows) else []
    starts = [row.start for row in rows]
    drafts = [row.drafts for row in rows]
    ahead = [0] * len(single)  # 0: the row's own token, j: its draft number j
    if any(drafts):
        parts = [(starts[i] + j, i, j) for i in single for j in range(1 + len(drafts[i]))]
        parts.sort(reverse=True)
        single, ahead = [i for _, i, _ in parts], [j for _, _, j in parts]
    else:
        single.sort(key=starts.__getitem__, reverse=True)
    ids: list[int] = []
    slots: list[int] = []
    positions: list[int] = []
    pages: list[int] = []
    num_pages: list[int] = []  # per row of `single`
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
        positions.append(start)
        page, offset = divmod(start, block_size)
        slots.append(row.block_table[page] * block_size + offset)
        num_pages.append(page + 1)
    lengths = [start + 1 for start in positions]
    groups = decode_groups(num_pages)
    for begin, end in groups:
        widest = num_pages[begin]
        for at in range(begin, end):
            own = num_pages[at]
            pages += rows[single[at]].block_table[:own]
            if own < widest:
                pages += [pages[-1]] * (widest - own)  # padding: warm in the cache, masked out
    for i in longer:
        row, end = rows[i], rows[i].start + rows[i].count
        first[i] = len(ids)
        ids += row.tokens[row.start : end]
        positions += range(row.start, end)
        table = row.block_table[: -(-end // block_size)]
        pages += table
        for page in range(row.start // block_size, len(table)):
            low = max(row.start, page * block_size)
            high = min(end, (page + 1) * block_size)
            base = (table[page] - page) * block_size
            slots += range(base + low, base + high)
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
    sizes = [len(ids), len(ids), len(slots), len(keep), len(lengths), len(pages)]
    flat = torch.frombuffer(
        array("q", ids + positions + slots + keep + lengths + pages), dtype=torch.int64
    )
    if device.type != "cpu":
        flat = flat.to(device, non_blocking=True)
    t_ids, t_positions, t_slots, t_keep, t_lengths, t_pages = torch.split(flat, sizes)

    decodes: list[Decodes] = []
    chunks: list[Chunk] = []
    at = 0
    for begin, end in groups:
        widest = num_pages[begin]
        size = (end - begin) * widest
        decodes.append(
            Decodes(
                begin=begin,
                end=end,
                num_pages=widest,
                num_keys=lengths[begin],
                equal=lengths[begin] == lengths[end - 1],
                pages=t_pages[at : at + size],
                lengths=t_lengths[begin:end],
                first_page=_side_by_side(pages[at : at + size]) if end - begin == 1 else None,
            )
        )
        at += size
    for i in longer:
        row = rows[i]
        size = -(-(row.start + row.count) // block_size)
        chunks.append(
            Chunk(
                begin=first[i],
                end=first[i] + row.count,
                context=row.start,
                pages=t_pages[at : at + size],
                first_page=_side_by_side(pages[at : at + size]),
            )
        )
        at += size
    return Batch(
        input_ids=t_ids.unsqueeze(0),
        positions=t_positions.unsqueeze(0),
        slots=t_slots,
        keep=t_keep,
        decodes=decodes,
        chunks=chunks,
        first=first,
        sampled=sampled,
        prompts=prompts,
    )


def _side_by_side(pages: list[int]) -> int | None:
    """The first page when the pages lie one after the other in memory."""
    first = pages[0]
    if pages[-1] - first + 1 == len(pages) and pages == list(range(first, first + len(pages))):
        return first
    return None
