"""Numbers from the host to the device without waiting for what runs there."""

from array import array

import torch
from torch import Tensor


def on_device(numbers: "array[int]", device: torch.device) -> Tensor:
    """
    A tensor of int32 (`i`) or int64 (`q`) numbers, of which there is one at least.

    To a GPU they go from pinned memory: a copy from any other waits for the steps before it.
    """
    flat = torch.frombuffer(numbers, dtype=torch.int64 if numbers.typecode == "q" else torch.int32)
    if device.type != "cuda":
        return flat.to(device)
    return flat.pin_memory().to(device, non_blocking=True)
