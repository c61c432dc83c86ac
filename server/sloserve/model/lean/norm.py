"""RMS norms in one call."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sloserve.model.lean.kernels import LayerKernels, NormCall


@dataclass(frozen=True, slots=True, eq=False)
class Norming:
    """x / sqrt(mean(x^2) + epsilon) * weight, over the last `weight.numel()` numbers."""

    weight: Tensor  # (size,) float32
    epsilon: float
    round_first: bool  # to the model's dtype, before the weight


def ways_to_norm(module: nn.Module) -> Iterator[Norming]:
    """What an RMS norm with a weight may compute: families differ in two details."""
    parameters = dict(module.named_parameters())
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if set(parameters) != {"weight"} or not isinstance(epsilon, float) or list(module.children()):
        return
    weight = parameters["weight"].detach().float()
    if weight.dim() != 1:
        return
    yield Norming(weight.clone(), epsilon, round_first=True)
    yield Norming(weight.clone(), epsilon, round_first=False)
    yield Norming(1.0 + weight, epsilon, round_first=False)


class LeanNorm(nn.Module):
    """An RMS norm of the last dimension. One thread at a time may call it."""

    def __init__(self, norming: Norming, kernels: LayerKernels) -> None:
        super().__init__()
        self._weight = norming.weight  # held for its memory
        self._size = norming.weight.numel()
        self._kernel = kernels.norm
        self._call = NormCall(
            weight=norming.weight.data_ptr(),
            size=self._size,
            source_row=self._size,
            epsilon=norming.epsilon,
            round_first=norming.round_first,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        x = x.contiguous()
        out = torch.empty_like(x)
        call, num = self._call, x.numel()
        call.source, call.to, call.rows = x.data_ptr(), out.data_ptr(), num // self._size
        self._kernel(call, num)
        return out
