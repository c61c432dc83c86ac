"""Gated MLPs with one product for gate and up."""

from collections.abc import Iterator

from torch import Tensor, nn

from sloserve.model.lean.kernels import GateCall, LayerKernels
from sloserve.model.lean.merging import merge, parts
from sloserve.model.linear import PackedLinear


class LeanMlp(nn.Module):
    """down(act(gate(x)) * up(x)). One thread at a time may call it."""

    def __init__(
        self, rows: PackedLinear, down: PackedLinear, *, gelu: bool, kernels: LayerKernels
    ) -> None:
        super().__init__()
        self.gate_up = rows
        self.down = down
        self._size = rows.out_features // 2
        self._kernel = kernels.gate
        self._call = GateCall(size=self._size, gelu=gelu)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        both = self.gate_up(x)
        out = both.new_empty(*both.shape[:-1], self._size)
        call, num = self._call, out.numel()
        call.source, call.to, call.rows = both.data_ptr(), out.data_ptr(), num // self._size
        self._kernel(call, num)
        result: Tensor = self.down(out)
        return result


def lean_mlps(module: nn.Module, kernels: LayerKernels) -> Iterator[LeanMlp]:
    """What may compute the same as an MLP that gates by silu, or by gelu with tanh."""
    linears, others = parts(module)
    if others:
        return
    if set(linears) == {"gate_proj", "up_proj", "down_proj"}:
        merged = merge([linears["gate_proj"], linears["up_proj"]])
    elif set(linears) == {"gate_up_proj", "down_proj"}:
        merged = merge([linears["gate_up_proj"]])
    else:
        return
    down = merge([linears["down_proj"]])
    for gelu in (False, True):
        yield LeanMlp(merged, down, gelu=gelu, kernels=kernels)
