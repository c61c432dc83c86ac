"""Attention by flash-attn's kernels over pages, where that package is installed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from sloserve.model.batch import Batch
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.terms import Terms

MAX_HEAD_SIZE = 256


@dataclass(frozen=True, slots=True)
class Varlen:
    """A step as flash-attn wants it: running sums and a table of pages, int32 on the device."""

    query_ends: Tensor  # (R + 1)
    key_ends: Tensor  # (R + 1)
    table: Tensor  # (R, width)
    max_queries: int
    max_keys: int


class FlashPath:
    """
    The path of `flash_attn.flash_attn_varlen_func`, from 2.6 on: one call a layer, whatever rows.

    For 16 bits, keys and values of one size, no sinks (`why_not`). Pages have 256 tokens: the
    kernels take multiples of that only.
    """

    name = "flash-attn"
    block_size = 256

    def __init__(self, varlen: Callable[..., Tensor]) -> None:
        self._varlen = varlen

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
        step = batch.kept.get(self.name)
        if not isinstance(step, Varlen):
            step = batch.kept[self.name] = varlen_of(batch)
        keys, values = cache.layers[layer]
        out = self._varlen(
            query[:, :num_tokens].transpose(0, 1),
            keys,
            values,
            cu_seqlens_q=step.query_ends,
            cu_seqlens_k=step.key_ends,
            max_seqlen_q=step.max_queries,
            max_seqlen_k=step.max_keys,
            softmax_scale=terms.scaling,
            causal=True,  # the last query sees the last key
            window_size=(-1, -1) if terms.window is None else (terms.window - 1, 0),
            softcap=terms.softcap or 0.0,
            block_table=step.table,
        )
        return F.pad(out, (0, 0, 0, 0, 0, query.shape[1] - num_tokens))

    @staticmethod
    def why_not(
        layers: Sequence[LayerShape], terms: Sequence[Terms], dtype: torch.dtype
    ) -> str | None:
        """What of a model flash-attn can't compute, or None."""
        if dtype.itemsize != 2:
            return f"it does not compute in {str(dtype).removeprefix('torch.')}"
        for number, shape in enumerate(layers):
            if shape.key_size != shape.value_size:
                return f"layer {number} has keys of {shape.key_size}, values of {shape.value_size}"
            if shape.key_size > MAX_HEAD_SIZE or shape.key_size % 8:
                return f"layer {number} has heads of {shape.key_size}"
        if any(layer.sinks is not None for layer in terms):
            return "the model has sinks"
        return None


def varlen_of(batch: Batch) -> Varlen:
    """Made on the device from the step's tables, so that a graph can hold the making."""
    tables = batch.tables
    counts = [end - begin for begin, end in pairwise(batch.begins)]
    width = max(end - begin for begin, end in pairwise(batch.page_begins))
    at = tables.page_begins[:-1, None] + torch.arange(width, device=tables.pages.device)
    lengths = tables.contexts + tables.begins.diff()
    return Varlen(
        query_ends=tables.begins.int(),
        key_ends=F.pad(lengths.cumsum(0), (1, 0)).int(),
        table=tables.pages[at.clamp_max(tables.pages.shape[0] - 1)].int(),
        max_queries=max(counts),
        max_keys=max(c + n for c, n in zip(batch.contexts, counts, strict=True)),
    )
