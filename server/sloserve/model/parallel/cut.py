"""This rank's part of a model: read from a folder by transformers, computed by plain layers."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sloserve.model.parallel.layers import (
    JoinedLinear,
    SummedLinear,
    linear_over,
    split_embedding,
    sum_output,
)
from sloserve.model.parallel.plan import (
    EMBEDDING,
    EXPERTS,
    JOINED,
    NOTHING_TO_DO,
    PARTED,
    SUMMED,
    WHOLE_INPUT,
    generic,
)
from sloserve.model.parallel.seat import Seat
from sloserve.model.terms import Unsupported


def reading_part(seat: Seat) -> dict[str, Any]:
    """What `from_pretrained` is given so that it reads this rank's part of the weights alone."""
    config: Any = import_module("transformers.distributed").DistributedConfig  # not in old ones
    return {"distributed_config": config(tp_size=seat.size, tp_plan="auto")}


def settle(network: PreTrainedModel, *, seat: Seat) -> None:
    """
    Make a model that transformers has read in parts one of plain tensors and layers.

    transformers wraps each weight as a DTensor and each layer's forward in conversions. Under the
    model's own plan all that is left of them, without gradients, are sums and joins between ranks:
    those are here (`layers`), and what each rank computes in between are ordinary linear layers,
    which can be packed and captured like those of a whole model.
    """
    plan: dict[str, str] = network.tp_plan
    outer = {name: _outer_shape(module) for name, module in network.named_modules()}
    _to_local(network)
    for name, module in list(network.named_modules()):
        style = plan.get(generic(name))
        if style is None:
            continue
        module.__dict__.pop("forward", None)  # transformers' conversions around the class's own
        if style in NOTHING_TO_DO:
            continue
        if style == EMBEDDING and isinstance(module, nn.Embedding):
            split_embedding(module, seat=seat, num_rows=outer[name][0])
        elif style == EXPERTS:
            sum_output(module, seat=seat)
        elif type(module) is nn.Linear:
            whole, at = outer[name], name.rpartition(".")
            part = _part(module, style, seat=seat, outputs=whole[0], inputs=whole[1])
            setattr(network.get_submodule(at[0]), at[2], part)
        else:
            raise Unsupported(
                f"{type(network).__name__}: its tensor parallel plan cuts {name} ({style}), a "
                f"{type(module).__name__}, which is not known here"
            )


def _part(linear: nn.Linear, style: str, *, seat: Seat, outputs: int, inputs: int) -> nn.Module:
    bias = None if linear.bias is None else linear.bias.detach()
    weight = linear.weight.detach()
    if style == PARTED:
        return linear_over(weight, bias)
    if style in JOINED:
        return JoinedLinear(linear_over(weight, bias), seat=seat, outputs=outputs)
    if style in SUMMED:
        return SummedLinear(
            linear_over(weight, None),
            bias,
            seat=seat,
            whole_input=style in WHOLE_INPUT,
            inputs=inputs,
        )
    raise Unsupported(f"a linear layer is cut in a way that is not known here ({style})")


def _outer_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of the whole weight, of which this rank has a part."""
    weight = module._parameters.get("weight")
    return () if weight is None else tuple(weight.shape)


def _to_local(network: nn.Module) -> None:
    """Every DTensor parameter becomes the plain tensor of this rank; tied ones stay tied."""
    local: dict[nn.Parameter, nn.Parameter] = {}  # by identity
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not hasattr(parameter, "to_local"):
                continue
            if parameter not in local:
                wrapped: Any = parameter.detach()
                part: Tensor = wrapped.to_local()
                if part.untyped_storage().nbytes() > part.nbytes:  # a view would keep the whole
                    part = part.clone(memory_format=torch.contiguous_format)
                local[parameter] = nn.Parameter(part.contiguous(), requires_grad=False)
            module._parameters[name] = local[parameter]
