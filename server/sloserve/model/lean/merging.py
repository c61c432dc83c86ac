"""Linear layers side by side as one."""

from collections.abc import Sequence

import torch
from torch import nn

from sloserve.model.linear import PackedLinear


def parts(module: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, nn.Module]]:
    """The plain linear layers of a module, and what else it has that holds parameters."""
    linears = {n: child for n, child in module.named_children() if type(child) is nn.Linear}
    others = {
        name: child
        for name, child in module.named_children()
        if name not in linears and any(True for _ in child.parameters())
    }
    return linears, others


def merge(linears: Sequence[nn.Linear]) -> PackedLinear:
    """One packed layer that gives what these give, side by side."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if all(linear.bias is None for linear in linears):
        return PackedLinear(weight, None)
    biases = [
        linear.weight.new_zeros(linear.out_features)
        if linear.bias is None
        else linear.bias.detach()
        for linear in linears
    ]
    return PackedLinear(weight, torch.cat(biases))
