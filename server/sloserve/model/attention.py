"""
Attention over the paged cache, as a function that transformers' models call by name.

The name is not known to transformers' mask interface, so no mask is built: which keys a query
sees follows from the current step and the layer's window alone. `read_terms` turns what a model
passes into what is computed here, and refuses the rest. How it is computed is up to the cache's
`AttentionPath`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import AttentionInterface

from sloserve.model.batch import Batch
from sloserve.model.kv import KvCache
from sloserve.model.terms import Unsupported, read_terms

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


def running_step() -> tuple[Batch, KvCache]:
    """The step that runs in this thread (`current_step`)."""
    batch, cache = _current.batch, _current.cache
    assert batch is not None, "attention outside of a step"
    assert cache is not None
    return batch, cache


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **given: object,
) -> tuple[Tensor, None]:
    """
    Write the step's keys and values, then attend, by the path of the current cache.

    query (1, H, P, D), key (1, Hkv, P, D), value (1, Hkv, P, Dv) -> (1, P, H, Dv); what is
    padding (`Batch`) is not attended and comes out as 0. Raises Unsupported for a mask, and for
    what `read_terms` does not know.
    """
    batch, cache = running_step()
    layer: int = module.layer_idx  # type: ignore[assignment]
    terms = read_terms(given, num_heads=query.shape[1], key_size=query.shape[3])
    if attention_mask is not None:
        raise Unsupported("attention is given a mask that the model made by itself")
    if query.dtype != cache.dtype or key.dtype != cache.dtype or value.dtype != cache.dtype:
        query, key, value = query.to(cache.dtype), key.to(cache.dtype), value.to(cache.dtype)
    out = cache.path.attend(
        layer, query[0], key[0], value[0], batch=batch, cache=cache, terms=terms
    )
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, paged_attention)
