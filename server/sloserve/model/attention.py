"""
Attention over the paged cache, as a function that transformers' models call by name.

The name is not known to transformers' mask interface, so no mask is built: which keys a query
sees follows from the current step and the layer's window alone. `read_terms` turns what a model
passes into what is computed here, and refuses the rest.
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
from sloserve.model.terms import Terms, Unsupported, read_terms

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
    **given: object,
) -> tuple[Tensor, None]:
    """
    Write the step's keys and values, then attend: decodes by group, prefill chunks one by one.

    query (1, H, P, D), key (1, Hkv, P, D), value (1, Hkv, P, Dv) -> (1, P, H, Dv); what is
    padding (`Batch`) is not attended and comes out as 0. Raises Unsupported for a mask, and for
    what `read_terms` does not know.
    """
    batch, cache = _current.batch, _current.cache
    assert batch is not None, "attention outside of a step"
    assert cache is not None
    layer: int = module.layer_idx  # type: ignore[assignment]
    terms = read_terms(given, num_heads=query.shape[1], key_size=query.shape[3])
    if attention_mask is not None:
        raise Unsupported("attention is given a mask that the model made by itself")
    if query.dtype != cache.dtype or key.dtype != cache.dtype or value.dtype != cache.dtype:
        query, key, value = query.to(cache.dtype), key.to(cache.dtype), value.to(cache.dtype)
    query, key, value = query[0], key[0], value[0]  # (heads, P, size)
    num_tokens = batch.slots.shape[0]
    cache.write(
        layer,
        batch.slots,
        key[:, :num_tokens].transpose(0, 1),
        value[:, :num_tokens].transpose(0, 1),
    )
    parts: list[Tensor] = []  # (tokens, H, Dv)
    for group in batch.decodes:
        keys, values = cache.gather(
            layer, group.pages, num_rows=group.end - group.begin, first_page=group.first_page
        )
        if group.equal:
            keys, values = keys[:, :, : group.num_keys], values[:, :, : group.num_keys]
        rows = query[:, group.begin : group.end].transpose(0, 1)  # (rows, H, D)
        parts.append(_attend_rows(group, rows, keys, values, terms))
    for chunk in batch.chunks:
        if chunk.context == 0:
            keys = key[:, chunk.begin : chunk.end].unsqueeze(0)
            values = value[:, chunk.begin : chunk.end].unsqueeze(0)
        else:
            keys, values = cache.gather(layer, chunk.pages, num_rows=1, first_page=chunk.first_page)
            keys, values = keys[:, :, : chunk.num_keys], values[:, :, : chunk.num_keys]
        tokens = query[:, chunk.begin : chunk.end].unsqueeze(0)  # (1, H, n, D)
        parts.append(_attend_chunk(chunk, tokens, keys, values, terms))
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
