"""How a step's rows are cut for the Triton kernel: which launches, which tiles, how many splits."""

from array import array
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sloserve.model.batch import Batch
from sloserve.model.upload import on_device

MAX_DRAFTS = 16
"""Rows of up to this many tokens go together: a verified draft fills no tile of a prefill."""
MAX_SPLITS = 64
MIN_SPLIT_KEYS = 256
"""A program that reads fewer keys than this is not worth the combining."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The compile-time sizes of a launch."""

    block_m: int  # rows of a tile: tokens x heads of a group
    block_n: int  # keys at a time
    num_warps: int
    num_stages: int  # loads in flight


def tiling(*, group: int, max_count: int, head_size: int, itemsize: int) -> Tiling:
    """
    Sizes for rows of up to `max_count` tokens, `group` query heads to a key head.

    A tile of decodes holds one token, a tile of a prefill chunk enough rows to be bound by
    arithmetic. What is loaded ahead, block_n * (key + value) * stages beside the queries, stays
    below the 99 KiB of shared memory that small GPUs have.
    """
    least = max(16, power_of_two(group))
    most = 32 if itemsize > 2 else 128 if head_size <= 128 else 64
    block_m = max(least, min(most, power_of_two(group * max_count)))
    wide = head_size > 128
    if itemsize > 2:
        return Tiling(block_m=block_m, block_n=16 if wide else 32, num_warps=4, num_stages=2)
    return Tiling(
        block_m=block_m,
        block_n=32 if wide else 64,
        num_warps=8 if block_m >= 128 else 4,
        num_stages=2 if wide else 3,
    )


def num_splits(*, num_programs: int, num_keys: int, num_processors: int) -> int:
    """
    Over how many programs the keys of a tile are spread: a power of two.

    Two programs per multiprocessor keep a GPU busy; more splits than that, or shorter ones than
    MIN_SPLIT_KEYS keys, only cost.
    """
    wanted = -(-2 * num_processors // num_programs)
    useful = max(1, min(wanted, num_keys // MIN_SPLIT_KEYS, MAX_SPLITS))
    return 1 << (useful.bit_length() - 1)


def power_of_two(number: int) -> int:
    """The next one at or above `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Tiles:
    """A launch's tiles, on the device: the row of each, and its first token within the row."""

    rows: Tensor
    firsts: Tensor

    @property
    def num(self) -> int:
        """How many there are."""
        return self.rows.shape[0]


@dataclass(frozen=True, slots=True)
class Launch:
    """Rows of about the same number of tokens, which one launch attends."""

    rows: tuple[int, ...]
    counts: tuple[int, ...]  # tokens of each
    longest: int  # visible keys of the longest; an upper bound in a graph
    cut: dict[int, Tiles] = field(default_factory=dict)  # by tokens of a tile

    def tiles(self, num_tokens: int, device: torch.device) -> Tiles:
        """
        Tiles of at most `num_tokens` tokens. Those of decodes are made on the device, so that a
        graph can hold the making; the others are copied there.
        """
        found = self.cut.get(num_tokens)
        if found is None:
            found = self.cut[num_tokens] = self._tiles(num_tokens, device)
        return found

    def _tiles(self, num_tokens: int, device: torch.device) -> Tiles:
        if max(self.counts) == 1:  # these are the first rows of the batch
            num = len(self.rows)
            firsts = torch.zeros(num, dtype=torch.int32, device=device)
            return Tiles(torch.arange(num, dtype=torch.int32, device=device), firsts)
        cut = [
            (row, first)
            for row, count in zip(self.rows, self.counts, strict=True)
            for first in range(0, count, num_tokens)
        ]
        both = array("i", [row for row, _ in cut] + [first for _, first in cut])
        return Tiles(*on_device(both, device).view(2, -1))


def launches(batch: Batch) -> list[Launch]:
    """Decodes, drafts and prefill chunks of a step apart."""
    counts = [end - begin for begin, end in zip(batch.begins, batch.begins[1:], strict=False)]
    kinds: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        kinds.setdefault(0 if row < batch.num_decodes else 1 + (count > MAX_DRAFTS), []).append(row)
    return [
        Launch(
            rows=tuple(rows),
            counts=tuple(counts[row] for row in rows),
            longest=max(batch.contexts[row] + counts[row] for row in rows),
        )
        for rows in kinds.values()
    ]
