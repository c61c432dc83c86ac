"""Which tokens of a step belong to which adapter."""

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sloserve.model.batch import Batch, kept_tokens
from sloserve.model.upload import on_device


class Span(NamedTuple):
    """Tokens [begin, end) of a step."""

    begin: int
    end: int


@dataclass(slots=True)
class AdaptedStep:
    """
    Tokens of a step by adapter. Adapters are numbered from 1; 0 is the model as it is, and what
    padding has. P = tokens computed, padding included.
    """

    owners: Tensor  # (P,) int64, on the device
    keep: Tensor  # (S,) int64: the tokens that reach the output layer
    spans: dict[int, list[Span]]  # by adapter, in order, neighbours joined
    whole: int  # the adapter that all tokens but the padding belong to; 0: they differ
    masks: dict[tuple[int, bool], tuple[slice, Tensor]] = field(default_factory=dict)
    indices: dict[int, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """P."""
        return self.owners.shape[0]

    def mask(
        self, layout: "Layout", dtype: torch.dtype, *, kept: bool
    ) -> tuple[slice, Tensor] | None:
        """
        The columns from the first to the last adapter of this step that the layer has, and (P,
        those columns), or (S, those columns) with `kept`: 1 where the column belongs to the adapter
        of the token's row, else 0. None when the layer has none of them.
        """
        here = [columns for number, columns in layout.columns.items() if number in self.spans]
        if not here:
            return None
        key = id(layout), kept
        if key not in self.masks:
            columns = slice(here[0].start, here[-1].stop)
            owners = self.owners[self.keep] if kept else self.owners
            mask = (owners[:, None] == layout.owners[columns]).to(dtype)
            self.masks[key] = columns, mask
        return self.masks[key]

    def rows(self, number: int) -> Tensor:
        """(n,) int64, on the device: the tokens of adapter `number`."""
        if number not in self.indices:
            tokens = array("q", (t for span in self.spans[number] for t in range(*span)))
            self.indices[number] = on_device(tokens, self.owners.device)
        return self.indices[number]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the factors of each adapter lie in a layer's stack of them."""

    columns: dict[int, slice]  # by adapter
    owners: Tensor  # (all ranks,) int64, on the device: the adapter of each column


def adapted_step(batch: Batch, numbers: dict[str, int]) -> AdaptedStep | None:
    """The step of a batch; None when no row of it has an adapter."""
    if not any(batch.adapters):
        return None
    spans: dict[int, list[Span]] = {}
    owners = [0] * batch.input_ids.shape[1]
    for row, name in enumerate(batch.adapters):
        if not name:
            continue
        number, begin, end = numbers[name], batch.begins[row], batch.begins[row + 1]
        owners[begin:end] = [number] * (end - begin)
        mine = spans.setdefault(number, [])
        if mine and mine[-1].end == begin:
            mine[-1] = Span(mine[-1].begin, end)
        else:
            mine.append(Span(begin, end))
    num_real = batch.begins[-1]
    whole = next((n for n, mine in spans.items() if mine == [Span(0, num_real)]), 0)
    return AdaptedStep(
        owners=on_device(array("q", owners), batch.input_ids.device),
        keep=kept_tokens(batch),
        spans=spans,
        whole=whole,
    )
