"""The low-rank changes of one linear layer, each for the tokens of its adapter."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sloserve.model.lora.step import AdaptedStep, Layout
from sloserve.model.lora.weights import Factors
from sloserve.model.terms import Unsupported

MASKED_PRODUCTS = 4096
"""Up to so many tokens times ranks one product for all adapters, masked, is cheaper than one each:
below it the count of calls decides, not what they compute."""


class LowRank:
    """
    A linear layer's changes by all adapters, stacked, in place of the layer's `forward`.

    `of_kept`: it is the output layer, which sees only the tokens that logits are asked for.
    """

    def __init__(
        self,
        path: str,
        module: nn.Module,
        factors: Mapping[int, Factors],
        *,
        layout: Layout,
        of_kept: bool,
    ) -> None:
        self._path = path
        self._module = module
        self._forward: Callable[[Tensor], Tensor] = module.forward
        self._had_own = "forward" in vars(module)
        self._down = torch.cat([part.down for part in factors.values()])  # (all ranks, in)
        self._up = torch.cat([part.up for part in factors.values()])  # (all ranks, out)
        self._layout = layout
        self._of_kept = of_kept
        self.step: AdaptedStep | None = None

    @property
    def num_bytes(self) -> int:
        """Of the factors of all adapters."""
        return self._down.nbytes + self._up.nbytes

    def arm(self, step: AdaptedStep) -> None:
        """Take the layer's place for a step."""
        self.step = step
        vars(self._module)["forward"] = self.forward  # past nn.Module's __setattr__: it is slow

    def disarm(self) -> None:
        """The layer is as it was."""
        self.step = None
        if self._had_own:
            vars(self._module)["forward"] = self._forward
        else:
            vars(self._module).pop("forward", None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features): the layer's own, and the changes added."""
        out = self._forward(x)
        step = self.step
        assert step is not None, "not armed"
        rows, into = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
        expected = step.keep.shape[0] if self._of_kept else step.num_tokens
        if rows.shape[0] != expected:
            raise Unsupported(
                f"'{self._path}' is given {rows.shape[0]} of {expected} tokens: which adapter "
                "they belong to can't be told"
            )
        if not self._of_kept and step.whole:
            self._add(step.whole, rows, into)
        elif self._of_kept or expected * self._down.shape[0] <= MASKED_PRODUCTS:
            self._masked(step, rows, into)
        else:
            self._by_adapter(step, rows, into)
        return out

    def _masked(self, step: AdaptedStep, rows: Tensor, into: Tensor) -> None:
        found = step.mask(self._layout, self._down.dtype, kept=self._of_kept)
        if found is not None:
            columns, mask = found
            into.addmm_((rows @ self._down[columns].t()).mul_(mask), self._up[columns])

    def _by_adapter(self, step: AdaptedStep, rows: Tensor, into: Tensor) -> None:
        for number, spans in step.spans.items():
            if number not in self._layout.columns:
                continue
            if len(spans) == 1:
                (begin, end), *_ = spans
                self._add(number, rows[begin:end], into[begin:end])
                continue
            columns, mine = self._layout.columns[number], step.rows(number)
            low = rows.index_select(0, mine) @ self._down[columns].t()
            into.index_add_(0, mine, low @ self._up[columns])

    def _add(self, number: int, rows: Tensor, into: Tensor) -> None:
        columns = self._layout.columns.get(number)
        if columns is not None:
            into.addmm_(rows @ self._down[columns].t(), self._up[columns])
