"""Linear layers with weights laid out once for oneDNN, instead of at every call."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_ROWS_HINT = 8  # one layout serves from 1 to 1024 rows


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's own layout. CPU only; not to be saved."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def can_pack(dtype: torch.dtype) -> bool:
    """Whether the private torch operators are there and right on this CPU for this dtype."""
    weight = torch.linspace(-1, 1, 48 * 32).view(48, 32).to(dtype)
    bias, x = (
        torch.linspace(-1, 1, 48).to(dtype),
        torch.linspace(-1, 1, 96).view(1, 3, 32).to(dtype),
    )
    try:
        with torch.inference_mode():
            packed = PackedLinear(weight, bias)(x)
    except (RuntimeError, AttributeError):
        return False
    expected = nn.functional.linear(x.float(), weight.float(), bias.float())
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    return torch.allclose(packed.float(), expected, rtol=tolerance, atol=tolerance * 10)


def pack_linears(model: nn.Module) -> int:
    """
    Replace every plain linear layer of a CPU model by a packed one; the number replaced.

    Subclasses (quantised layers and the like) are left alone. Weights that nothing else holds
    are freed; a tied embedding stays, so a tied `lm_head` costs one more copy.
    """
    num_packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                weight = child.weight
            elif type(child) is Conv1D:
                weight = child.weight.t()  # Conv1D keeps (in, out)
            else:
                continue
            bias = None if child.bias is None else child.bias.detach()
            setattr(parent, name, PackedLinear(weight.detach(), bias))
            num_packed += 1
    return num_packed
