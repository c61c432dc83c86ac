"""
Attention with torch's own kernels: whole pages are gathered, then `scaled_dot_product_attention`.

Always there, on every device, and what the other paths are compared with. Decodes go together,
in groups that are padded to one length each; prefill chunks go one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sloserve.model.batch import Batch, flat_tensor
from sloserve.model.kv import KvCache
from sloserve.model.terms import Terms

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
class Gathers:
    """What is gathered for one step, layer after layer."""

    decodes: list[Decodes]
    chunks: list[Chunk]


class Gathered:
    """The path through torch."""

    name = "torch"
    block_size = 16

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        batch: Batch,
        cache: KvCache,
        terms: Terms,
    ) -> Tensor:
        """As `AttentionPath.attend`."""
        num_tokens = batch.slots.shape[0]
        cache.write(layer, batch.slots, key, value)
        gathers = batch.kept.get(self.name)
        if not isinstance(gathers, Gathers):
            gathers = batch.kept[self.name] = gathers_of(batch)
        parts: list[Tensor] = []  # (tokens, H, Dv)
        for group in gathers.decodes:
            keys, values = cache.gather(
                layer, group.pages, num_rows=group.end - group.begin, first_page=group.first_page
            )
            if group.equal:
                keys, values = keys[:, :, : group.num_keys], values[:, :, : group.num_keys]
            rows = query[:, group.begin : group.end].transpose(0, 1)  # (rows, H, D)
            parts.append(_attend_rows(group, rows, keys, values, terms))
        for chunk in gathers.chunks:
            if chunk.context == 0:
                keys = key[:, chunk.begin : chunk.end].unsqueeze(0)
                values = value[:, chunk.begin : chunk.end].unsqueeze(0)
            else:
                keys, values = cache.gather(
                    layer, chunk.pages, num_rows=1, first_page=chunk.first_page
                )
                keys, values = keys[:, :, : chunk.num_keys], values[:, :, : chunk.num_keys]
            tokens = query[:, chunk.begin : chunk.end].unsqueeze(0)  # (1, H, n, D)
            parts.append(_attend_chunk(chunk, tokens, keys, values, terms))
        num_padding = query.shape[1] - num_tokens
        if num_padding:
            parts.append(parts[0].new_zeros(num_padding, *parts[0].shape[1:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


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


def gathers_of(batch: Batch) -> Gathers:
    """How the rows of a step are gathered: its decodes in groups, its chunks one by one."""
    num_decodes, begins = batch.num_decodes, batch.page_begins
    own = [batch.page_list[begins[i] : begins[i + 1]] for i in range(len(batch.contexts))]
    lengths = [context + 1 for context in batch.contexts[:num_decodes]]
    groups = decode_groups([len(pages) for pages in own[:num_decodes]])
    padded: list[list[int]] = []  # pages by group
    for begin, end in groups:
        widest, pages = len(own[begin]), list[int]()
        for row in own[begin:end]:
            pages += row
            pages += [row[-1]] * (widest - len(row))  # padding: warm in the cache, masked out
        padded.append(pages)
    padded += own[num_decodes:]
    flat = flat_tensor([*padded, lengths], device=batch.slots.device)
    decodes = [
        Decodes(
            begin=begin,
            end=end,
            num_pages=len(own[begin]),
            num_keys=lengths[begin],
            equal=lengths[begin] == lengths[end - 1],
            pages=flat[i],
            lengths=flat[-1][begin:end],
            first_page=_side_by_side(padded[i]) if end - begin == 1 else None,
        )
        for i, (begin, end) in enumerate(groups)
    ]
    chunks = [
        Chunk(
            begin=batch.begins[row],
            end=batch.begins[row + 1],
            context=batch.contexts[row],
            pages=flat[i],
            first_page=_side_by_side(padded[i]),
        )
        for i, row in enumerate(range(num_decodes, len(own)), start=len(groups))
    ]
    return Gathers(decodes, chunks)


def _side_by_side(pages: list[int]) -> int | None:
    """The first page when the pages lie one after the other in memory."""
    first = pages[0]
    if pages[-1] - first + 1 == len(pages) and pages == list(range(first, first + len(pages))):
        return first
    return None


def _decode_mask(group: Decodes, window: int | None, keys: Tensor) -> Tensor | None:
    """(rows, 1, 1, num_keys) of 0 and -inf to add to the scores, or None when all is visible."""
    if window is not None and window >= group.num_keys:
        window = None  # the window reaches back to the first token
    if window not in group.masks:
        group.masks[window] = None
        if not group.equal or window is not None:
            at = torch.arange(keys.shape[2], device=keys.device)
            ends = group.lengths[:, None]
            hidden = at >= ends
            if window is not None:
                hidden |= at < ends - window
            mask = torch.zeros(hidden.shape, dtype=keys.dtype, device=keys.device)
            group.masks[window] = mask.masked_fill_(hidden, -torch.inf)[:, None, None]
    return group.masks[window]


def _attend_rows(
    group: Decodes, query: Tensor, keys: Tensor, values: Tensor, terms: Terms
) -> Tensor:
    """
    One query per row, (rows, H, D) -> (rows, H, Dv).

    The query heads that share a key head go in as the queries of that head: in bfloat16 several
    times faster than `enable_gqa` with one query (8 x 512 keys: 0.29 against 1.8 ms). For the
    same reason a lone 16-bit query goes in twice on CPU (8 x 512 keys: 0.6 against 2.2 ms).
    """
    mask = _decode_mask(group, terms.window, keys)
    rows, heads, size = query.shape
    kv_heads = keys.shape[1]
    query = query.reshape(rows, kv_heads, heads // kv_heads, size)
    if not terms.plain:
        sinks = terms.sinks
        if sinks is not None:
            sinks = sinks.view(1, kv_heads, heads // kv_heads, 1)
        out = _attend_plainly(query, keys, values, mask, terms, sinks)
        return out.reshape(rows, heads, values.shape[3])
    twice = heads == kv_heads and query.dtype.itemsize == 2 and query.device.type == "cpu"
    if twice:
        query = torch.cat((query, query), dim=2)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=terms.scaling)
    if twice:
        out = out[:, :, :1]
    return out.reshape(rows, heads, values.shape[3])


def _attend_chunk(
    chunk: Chunk, query: Tensor, keys: Tensor, values: Tensor, terms: Terms
) -> Tensor:
    """Queries of one request, (1, H, n, D) -> (n, H, Dv)."""
    window = terms.window
    if window is not None and window >= chunk.num_keys:
        window = None
    if chunk.context == 0 and window is None and terms.plain:
        out = F.scaled_dot_product_attention(
            query, keys, values, is_causal=True, scale=terms.scaling, enable_gqa=True
        )
        return out[0].transpose(0, 1)
    mask = _chunk_mask(chunk, window, query)
    if terms.plain:
        out = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=terms.scaling, enable_gqa=True
        )
        return out[0].transpose(0, 1)
    _, heads, count, size = query.shape
    kv_heads = keys.shape[1]
    query = query.reshape(1, kv_heads, -1, size)  # heads of one key head one after the other
    sinks = terms.sinks
    if sinks is not None:
        sinks = sinks.repeat_interleave(count).view(1, kv_heads, -1, 1)
    mask = mask.repeat(heads // kv_heads, 1)
    out = _attend_plainly(query, keys, values, mask, terms, sinks)
    return out.reshape(heads, count, -1).transpose(0, 1)


def _chunk_mask(chunk: Chunk, window: int | None, query: Tensor) -> Tensor:
    """(n, num_keys) of 0 and -inf to add to the scores, made once per step and window."""
    mask = chunk.masks.get(window)
    if mask is None:
        num_keys, device = chunk.num_keys, query.device
        behind = (
            torch.arange(chunk.context, num_keys, device=device)[:, None]
            - torch.arange(num_keys, device=device)[None]
        )  # (n, num_keys): how far the key lies before the query
        hidden = behind < 0
        if window is not None:
            hidden |= behind >= window
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=device)
        chunk.masks[window] = mask.masked_fill_(hidden, -torch.inf)
    return mask


def _attend_plainly(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    terms: Terms,
    sinks: Tensor | None,
) -> Tensor:
    """
    What the fused kernels can't: softcap and sinks (`Terms`).

    query (..., q, D), sinks (..., q, 1) -> (..., q, Dv).
    """
    scores = (query @ keys.transpose(-1, -2)) * terms.scaling
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    if mask is not None:
        scores = scores + mask
    scores = scores.float()
    if sinks is not None:
        sinks = sinks.float().expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights.to(values.dtype) @ values
