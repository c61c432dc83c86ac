"""Linear layers and embeddings of which every rank holds a part, by their names in tp plans."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sloserve.model.parallel.seat import Seat


def linear_over(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain linear layer over these very tensors, so that it can be packed like any other."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


class SummedLinear(nn.Module):
    """
    Every rank has some of the inputs (`rowwise`): it computes a summand of every output.

    With `whole_input` each rank is given all inputs and takes its own.
    """

    def __init__(
        self, part: nn.Linear, bias: Tensor | None, *, seat: Seat, whole_input: bool, inputs: int
    ) -> None:
        super().__init__()
        self.part = part
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.in_features, self.out_features = inputs, part.out_features
        self._seat = seat
        self._bounds = seat.bounds(inputs) if whole_input else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs, this rank's or all) -> (..., out_features), the same at every rank."""
        if self._bounds is not None:
            x = x[..., self._bounds[0] : self._bounds[1]]
        out = self._seat.add(self.part(x))
        return out if self.bias is None else out + self.bias


class JoinedLinear(nn.Module):
    """Every rank computes some of the outputs and gets all (`colwise_gather_output`)."""

    def __init__(self, part: nn.Linear, *, seat: Seat, outputs: int) -> None:
        super().__init__()
        self.part = part
        self.in_features, self.out_features = part.in_features, outputs
        self._seat = seat

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., outputs), the same at every rank."""
        return self._seat.join_last(self.part(x), whole=self.out_features)


def split_embedding(embedding: nn.Embedding, *, seat: Seat, num_rows: int) -> None:
    """
    `embedding` holds this rank's of `num_rows` rows from now on: it gives 0 for the tokens of
    others, and the ranks' answers are added up. What its class does besides (a scale) stays.
    """
    first, end = seat.bounds(num_rows)
    plain: Callable[[Tensor], Tensor] = embedding.forward
    embedding.padding_idx = None
    embedding.num_embeddings = end - first

    def forward(ids: Tensor) -> Tensor:
        own = (ids >= first) & (ids < end)
        if end == first:
            width = embedding.embedding_dim
            weight = embedding.weight
            return seat.add(torch.zeros(*ids.shape, width, dtype=weight.dtype, device=ids.device))
        found = plain((ids - first).clamp(0, end - first - 1))
        return seat.add(found * own.unsqueeze(-1))

    embedding.forward = forward  # type: ignore[method-assign, assignment]


def sum_output(module: nn.Module, *, seat: Seat) -> None:
    """What the ranks' `module`s give is added up from now on (`moe_tp_experts`)."""
    plain = module.forward

    def forward(*args: object, **given: object) -> Tensor:
        out: Tensor = plain(*args, **given)
        return seat.add(out.contiguous())

    module.forward = forward
