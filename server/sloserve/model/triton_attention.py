"""The attention path of our own Triton kernel: one launch for each kind of row of a step."""

from types import ModuleType

import torch
from torch import Tensor

from sloserve.model.batch import Batch
from sloserve.model.kv import KvCache
from sloserve.model.terms import Terms
from sloserve.model.triton_tiles import (
    MAX_SPLITS,
    Launch,
    launches,
    num_splits,
    power_of_two,
    tiling,
)


class TritonPath:
    """
    Takes every head size, window, softcap and sinks.

    `kernels` is `triton_kernel`, compiled for a GPU or interpreted; `num_processors` are the
    multiprocessors that a launch should keep busy. All of the host's decisions follow from the
    number of rows and their longest context, so a launch can be kept in a CUDA graph.
    """

    name = "triton"
    block_size = 16

    def __init__(self, kernels: ModuleType, *, num_processors: int) -> None:
        self._kernels = kernels
        self._num_processors = num_processors

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
        tokens = query.transpose(0, 1)  # (P, H, D)
        out = query.new_empty(*tokens.shape[:2], value.shape[2])
        out[num_tokens:] = 0
        cut = batch.kept.get(self.name)
        if not isinstance(cut, tuple):
            cut = batch.kept[self.name] = tuple(launches(batch))
        for launch in cut:
            self._launch(launch, tokens, out, batch, cache.layers[layer], terms)
        return out

    def _launch(
        self,
        launch: Launch,
        query: Tensor,
        out: Tensor,
        batch: Batch,
        memory: tuple[Tensor, Tensor],
        terms: Terms,
    ) -> None:
        """query (P, H, D) of the launch's rows -> out (P, H, Dv), in place."""
        keys, values = memory
        _, heads, key_size = query.shape
        _, page, kv_heads, value_size = values.shape
        group, device, max_count = heads // kv_heads, query.device, max(launch.counts)
        sizes = tiling(
            group=group,
            max_count=max_count,
            head_size=max(key_size, value_size),
            itemsize=query.dtype.itemsize,
        )
        tile_tokens = sizes.block_m // group
        tiles = launch.tiles(tile_tokens, device)
        num_keys = launch.longest
        if terms.window is not None:
            num_keys = min(num_keys, terms.window + max_count - 1)
        splits = num_splits(
            num_programs=tiles.num * kv_heads,
            num_keys=num_keys,
            num_processors=self._num_processors,
        )
        parts, maxima, sums = out, out, out
        if splits > 1:
            shape = (tiles.num, kv_heads, sizes.block_m, splits)
            parts = torch.empty((*shape, value_size), dtype=torch.float32, device=device)
            maxima = torch.empty(shape, dtype=torch.float32, device=device)
            sums = torch.empty(shape, dtype=torch.float32, device=device)
        value_pad = max(16, power_of_two(value_size))
        tables = batch.tables
        self._kernels.attend[(tiles.num, kv_heads, splits)](
            parts,
            maxima,
            sums,
            query,
            keys,
            values,
            tables.begins,
            tables.contexts,
            tables.page_begins,
            tables.pages,
            tiles.rows,
            tiles.firsts,
            query if terms.sinks is None else terms.sinks,
            terms.scaling,
            terms.softcap or 1.0,
            terms.window or 0,
            splits,
            *query.stride()[:2],
            *out.stride()[:2],
            *keys.stride()[:3],
            *values.stride()[:3],
            GROUP=group,
            KEY=key_size,
            KEY_PAD=max(16, power_of_two(key_size)),
            VALUE=value_size,
            VALUE_PAD=value_pad,
            PAGE=page,
            BLOCK_M=sizes.block_m,
            BLOCK_N=sizes.block_n,
            WINDOW=terms.window is not None,
            SOFTCAP=terms.softcap is not None,
            SINKS=terms.sinks is not None,
            SPLIT=splits > 1,
            PRECISION="ieee",  # of float32; TF32 would miss the self-test's tolerance
            num_warps=sizes.num_warps,
            num_stages=sizes.num_stages,
        )
        if splits > 1:
            self._kernels.combine[(tiles.num, kv_heads, min(tile_tokens, max_count) * group)](
                out,
                parts,
                maxima,
                sums,
                tables.begins,
                tiles.rows,
                tiles.firsts,
                sizes.block_m,
                splits,
                *out.stride()[:2],
                GROUP=group,
                VALUE=value_size,
                VALUE_PAD=value_pad,
                MAX_SPLITS=MAX_SPLITS,
                num_warps=4,
            )
