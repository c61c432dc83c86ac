"""The KV memory: one pair of tensors per layer, in pages of `block_size` tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor

from sloserve.errors import BadInput
from sloserve.model.path import AttentionPath


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Keys and values of one attention layer, as seen in a real call."""

    num_kv_heads: int
    key_size: int
    value_size: int


def bytes_per_token(layers: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """KV bytes of one token over all layers."""
    return sum(
        shape.num_kv_heads * (shape.key_size + shape.value_size) * dtype.itemsize
        for shape in layers
    )


def num_blocks_for(
    budget_bytes: int,
    *,
    layers: Sequence[LayerShape],
    dtype: torch.dtype,
    block_size: int,
    max_model_len: int,
    budget_note: str,
) -> int:
    """
    Blocks that fit into the budget. `budget_note` tells where the budget comes from.

    Raises BadInput, with the arithmetic, when not even one request of `max_model_len` fits.
    """
    per_token = bytes_per_token(layers, dtype)
    num_blocks = max(budget_bytes, 0) // (per_token * block_size)
    needed = -(-max_model_len // block_size)
    if num_blocks < needed:
        raise BadInput(
            f"no memory for the KV cache: one request of {max_model_len} tokens needs {needed} "
            f"blocks x {block_size} tokens x {per_token} bytes = "
            f"{readable(needed * block_size * per_token)}, but there are "
            f"{readable(max(budget_bytes, 0))} ({budget_note}). Give the cache more memory "
            f"(engine.kvCache.size or memoryFraction), or lower model.maxModelLen",
            field="engine.kvCache",
        )
    return num_blocks


def readable(num_bytes: int) -> str:
    """A size as a person reads it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"


class KvCache:
    """
    Keys and values of every layer, `[num_blocks, block_size, num_kv_heads, size]` each, and the
    way to attend over them.

    Starts as zeros (padding is read, masked, and must be finite). On CPU the memory is mapped
    from the system, which hands out zeroed pages when they are first used: `torch.zeros` would
    write all of it (20 GiB: two minutes). `gather` copies pages into two buffers that are kept
    from call to call: fresh ones of megabytes would be page-faulted in at every layer.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        path: AttentionPath,
    ) -> None:
        self.path = path
        self.shapes = tuple(layers)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.device = device
        try:
            self.layers: list[tuple[Tensor, Tensor]] = [
                (self._zeros(shape, shape.key_size), self._zeros(shape, shape.value_size))
                for shape in layers
            ]
        except (OSError, RuntimeError) as error:  # mmap raises OSError, CUDA a RuntimeError
            size = num_blocks * block_size * bytes_per_token(layers, dtype)
            raise BadInput(
                f"no memory for the KV cache: {num_blocks} blocks x {block_size} tokens x "
                f"{bytes_per_token(layers, dtype)} bytes = {readable(size)} could not be "
                f"allocated on {device}; lower engine.kvCache.size or memoryFraction",
                field="engine.kvCache",
            ) from error
        self.slots = [
            (keys.view(-1, *keys.shape[2:]), values.view(-1, *values.shape[2:]))
            for keys, values in self.layers
        ]  # (num_blocks * block_size, num_kv_heads, size)
        self._buffers = [torch.empty(0, dtype=dtype, device=device) for _ in range(2)]

    def _zeros(self, shape: LayerShape, size: int) -> Tensor:
        dims = (self.num_blocks, self.block_size, shape.num_kv_heads, size)
        if self.device.type != "cpu":
            return torch.zeros(dims, dtype=self.dtype, device=self.device)
        size_bytes = math.prod(dims) * self.dtype.itemsize
        memory = mmap(-1, size_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        return torch.frombuffer(memory, dtype=self.dtype).view(dims)

    def release(self) -> None:
        """Give the memory back."""
        self.layers, self.slots, self._buffers = [], [], []

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """
        Store keys and values `(num_kv_heads, P, size)` of the first T tokens at `slots`, (T,).

        Paths call it, not who calls them: the compiled kernel stores them beside its own work,
        where a call of its own would add 8 to 60 % (13 us a layer for one decode).
        """
        num_tokens = slots.shape[0]
        key_slots, value_slots = self.slots[layer]
        key_slots.index_copy_(0, slots, keys[:, :num_tokens].transpose(0, 1))
        value_slots.index_copy_(0, slots, values[:, :num_tokens].transpose(0, 1))

    def gather(
        self, layer: int, pages: Tensor, *, num_rows: int, first_page: int | None
    ) -> tuple[Tensor, Tensor]:
        """
        Keys and values of the rows' pages, `(num_rows, num_kv_heads, num_keys, size)`.

        They are valid until the next call. With `first_page` the pages lie side by side and the
        answer is a view of the cache.
        """
        keys, values = self.layers[layer]
        if first_page is not None:
            last = first_page + pages.shape[0]
            keys, values = keys[first_page:last], values[first_page:last]
        else:
            keys, values = self._take(0, keys, pages), self._take(1, values, pages)
        _, _, heads, key_size = keys.shape
        return (
            keys.view(num_rows, -1, heads, key_size).transpose(1, 2),
            values.view(num_rows, -1, heads, values.shape[3]).transpose(1, 2),
        )

    def _take(self, which: int, source: Tensor, pages: Tensor) -> Tensor:
        shape = (pages.shape[0], *source.shape[1:])
        size = shape[0] * shape[1] * shape[2] * shape[3]
        if self._buffers[which].shape[0] < size:
            self._buffers[which] = torch.empty(
                1 << (size - 1).bit_length(), dtype=self.dtype, device=self.device
            )
        into = self._buffers[which][:size].view(shape)
        return torch.index_select(source, 0, pages, out=into)
