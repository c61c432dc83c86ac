"""
Attention over the paged cache, as a function that transformers' models call by name.

The name is not known to transformers' mask interface, so no mask is built: which keys a query
sees follows from the current step alone (key j is visible to query i iff 0 <= i - j < window).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from sloserve.model.batch import Batch, Chunk, Decodes
from sloserve.model.kv import KvCache

NAME = "sloserve_paged"


class _Current(threading.local):
    """The step that runs in this thread; some models drop keyword arguments they don't know."""

    batch: Batch | None = None
    cache: KvCache | None = None


_current = _Current()


@contextmanager
def current_step(batch: Batch, cache: KvCache) -> Iterator[None]:
    """Within this, forward passes of this thread attend over `cache` as `batch` says."""
    _current.batch, _current.cache = batch, cache
    try:
        yield
    finally:
        _current.batch = _current.cache = None


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """
    Write the step's keys and values, then attend: decodes by group, prefill chunks one by one.

    query (1, H, P, D), key (1, Hkv, P, D), value (1, Hkv, P, Dv) -> (1, P, H, Dv); what is
    padding (`Batch`) is not attended and comes out as 0.
    """
    batch, cache = _current.batch, _current.cache
    assert batch is not None, "attention outside of a step"
    assert cache is not None
    layer: int = module.layer_idx  # type: ignore[assignment]
    query, key, value = query[0], key[0], value[0]  # (heads, P, size)
    num_tokens = batch.slots.shape[0]
    cache.write(
        layer,
        batch.slots,
        key[:, :num_tokens].transpose(0, 1),
        value[:, :num_tokens].transpose(0, 1),
    )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if query.dtype != cache.dtype:
        query = query.to(cache.dtype)
    parts: list[Tensor] = []  # (tokens, H, Dv)
    for group in batch.decodes:
        keys, values = cache.gather(
            layer, group.pages, num_rows=group.end - group.begin, first_page=group.first_page
        )
        if group.equal:
            keys, values = keys[:, :, : group.num_keys], values[:, :, : group.num_keys]
        mask = _decode_mask(group, sliding_window, keys)
        rows = query[:, group.begin : group.end].transpose(0, 1)  # (rows, H, D)
        parts.append(_attend_rows(rows, keys, values, mask, scaling, softcap, s_aux))
    for chunk in batch.chunks:
        if chunk.context == 0:
            keys = key[:, chunk.begin : chunk.end].unsqueeze(0)
            values = value[:, chunk.begin : chunk.end].unsqueeze(0)
        else:
            keys, values = cache.gather(layer, chunk.pages, num_rows=1, first_page=chunk.first_page)
            keys, values = keys[:, :, : chunk.num_keys], values[:, :, : chunk.num_keys]
        tokens = query[:, chunk.begin : chunk.end].unsqueeze(0)  # (1, H, n, D)
        parts.append(
            _attend_chunk(chunk, tokens, keys, values, scaling, sliding_window, softcap, s_aux)
        )
    num_padding = query.shape[1] - num_tokens
    if num_padding:
        parts.append(parts[0].new_zeros(num_padding, *parts[0].shape[1:]))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, paged_attention)


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
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """
    One query per row, (rows, H, D) -> (rows, H, Dv).

    The query heads that share a key head go in as the queries of that head: in bfloat16 several
    times faster than `enable_gqa` with one query (8 x 512 keys: 0.29 against 1.8 ms). For the
    same reason a lone 16-bit query goes in twice on CPU (8 x 512 keys: 0.6 against 2.2 ms).
    """
    rows, heads, size = query.shape
    kv_heads = keys.shape[1]
    query = query.reshape(rows, kv_heads, heads // kv_heads, size)
    twice = heads == kv_heads and query.dtype.itemsize == 2 and query.device.type == "cpu"
    if softcap is not None or sinks is not None:
        if sinks is not None:
            sinks = sinks.view(1, kv_heads, heads // kv_heads, 1)
        out = _attend_plainly(query, keys, values, mask, scaling, softcap, sinks)
    else:
        if twice:
            query = torch.cat((query, query), dim=2)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
        if twice:
            out = out[:, :, :1]
    return out.reshape(rows, heads, values.shape[3])


def _attend_chunk(
    chunk: Chunk,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Queries of one request, (1, H, n, D) -> (n, H, Dv)."""
    if window is not None and window >= chunk.num_keys:
        window = None
    plainly = softcap is not None or sinks is not None
    if chunk.context == 0 and window is None and not plainly:
        out = F.scaled_dot_product_attention(
            query, keys, values, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out[0].transpose(0, 1)
    if window not in chunk.masks:
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
    mask_ = chunk.masks[window]
    if plainly:
        _, heads, count, size = query.shape
        kv_heads = keys.shape[1]
        grouped = query.reshape(1, kv_heads, -1, size)  # heads of one key head one after the other
        repeated = None if mask_ is None else mask_.repeat(heads // kv_heads, 1)
        if sinks is not None:
            sinks = sinks.repeat_interleave(count).view(1, kv_heads, -1, 1)
        out = _attend_plainly(grouped, keys, values, repeated, scaling, softcap, sinks)
        return out.reshape(heads, count, -1).transpose(0, 1)
    out = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask_, scale=scaling, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def _attend_plainly(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """
    What the fused kernels can't: softcap(s) = c * tanh(s / c), and sinks.

    A sink is one more score per head that takes part in the softmax and has no value.
    query (..., q, D), sinks (..., q, 1) -> (..., q, Dv).
    """
    scores = (query @ keys.transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    scores = scores.float()
    if sinks is not None:
        sinks = sinks.float().expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights.to(values.dtype) @ values
