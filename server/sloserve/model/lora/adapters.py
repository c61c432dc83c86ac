"""
The adapters of one model: several of them, and the model as it is, in one ragged batch.

Layers that an adapter changes get another `forward` for the steps that have a row of an adapter,
and are left alone in all others: those cost nothing, and CUDA graphs of them stay valid.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sloserve.errors import BadInput
from sloserve.model.batch import Batch
from sloserve.model.kv import KvCache
from sloserve.model.lora.config import FIELD
from sloserve.model.lora.product import LowRank
from sloserve.model.lora.step import Layout, adapted_step
from sloserve.model.lora.weights import Adapter, Factors, read_adapter
from sloserve.model.runner import forward

NO_ADAPTERS: Mapping[str, Path] = MappingProxyType({})

_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


class Adapters:
    """
    What the adapters change in a model.

    `bind` when the model's layers are what will serve; after it `forward` computes batches whose
    rows name adapters. Before it, `plainly` is for whole forward passes, as a reference.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._numbers = {name: number for number, name in enumerate(self._adapters, 1)}
        self._changes: list[LowRank] = []

    @property
    def names(self) -> tuple[str, ...]:
        """By which rows ask for them."""
        return tuple(self._numbers)

    @property
    def num_bytes(self) -> int:
        """Memory of all factors."""
        return sum(change.num_bytes for change in self._changes)

    def bind(self, model: PreTrainedModel) -> None:
        """Stack the factors layer by layer, for the layers that `model` has now."""
        layouts: dict[tuple[tuple[int, int], ...], Layout] = {}
        output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        paths = dict.fromkeys(path for a in self._adapters.values() for path in a.factors)
        for path in paths:
            factors = {
                self._numbers[name]: adapter.factors[path]
                for name, adapter in self._adapters.items()
                if path in adapter.factors
            }
            ranks = tuple((number, part.down.shape[0]) for number, part in factors.items())
            if ranks not in layouts:
                layouts[ranks] = _layout(ranks, model.device)
            module = model.get_submodule(path)
            change = LowRank(path, module, factors, layout=layouts[ranks], of_kept=module is output)
            self._changes.append(change)
        self._adapters = {}  # the stacks hold the factors now

    def forward(self, model: PreTrainedModel, batch: Batch, cache: KvCache) -> Tensor:
        """Logits (S, vocabulary) as `sloserve.model.runner.forward`, each row by its adapter."""
        step = adapted_step(batch, self._numbers)
        if step is None:
            return forward(model, batch, cache)
        try:
            for change in self._changes:
                change.arm(step)
            return forward(model, batch, cache)
        finally:
            for change in self._changes:
                change.disarm()

    @contextmanager
    def plainly(self, model: PreTrainedModel, name: str) -> Iterator[None]:
        """
        Within it forward passes of `model` are those of adapter `name`, whatever the tokens; layer
        by layer, and by nothing that `forward` uses. Before `bind`.

        Raises BadInput at its end for a layer that no pass has called: it would be passed over.
        """
        silent = set(self._adapters[name].factors)

        def adding(path: str, part: Factors) -> _Hook:
            def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
                silent.discard(path)
                down, up = part.down.to(out.dtype), part.up.to(out.dtype)
                return out + functional.linear(functional.linear(given[0], down), up.t())

            return hook

        handles = [
            model.get_submodule(path).register_forward_hook(adding(path, part))
            for path, part in self._adapters[name].factors.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if silent:
            raise BadInput(
                f"adapter '{name}' changes '{min(silent)}', which {type(model).__name__} never "
                "calls: train without it",
                field=FIELD,
            )


def load_adapters(
    folders: Mapping[str, Path], *, model: PreTrainedModel, dtype: torch.dtype
) -> Adapters | None:
    """
    The adapters in `folders`, by the names of requests; None when there are none.

    Raises BadInput for one that can't be served over `model`.
    """
    if not folders:
        return None
    return Adapters(
        [
            read_adapter(folder, name=name, model=model, dtype=dtype)
            for name, folder in folders.items()
        ]
    )


def _layout(ranks: Sequence[tuple[int, int]], device: torch.device) -> Layout:
    columns: dict[int, slice] = {}
    owners: list[int] = []
    for number, rank in ranks:
        columns[number] = slice(len(owners), len(owners) + rank)
        owners += [number] * rank
    return Layout(columns, torch.tensor(owners, device=device))
