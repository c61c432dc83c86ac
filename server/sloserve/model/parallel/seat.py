"""A process's place among the ranks that compute one model, and what they tell each other."""

import datetime
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

MEET_S = 60.0
"""How long the ranks, all of them up, may take to find each other."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Seat:
    """
    Rank `rank` of `size`. Every rank calls the same methods in the same order, or all wait.

    Tensors on a GPU travel by NCCL, those of the host by gloo over the loopback interface.
    """

    rank: int
    size: int

    def join(
        self,
        store: Path,
        *,
        device: torch.device,
        timeout_s: float,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Meet the others, at a file that only they know. Nobody may be later than MEET_S here, and
        than `timeout_s` at anything that follows. Raises TimeoutError, also when `give_up` says
        that there is no use in waiting.

        Takes the rank's own GPU (rank r gets the r-th that is seen) where `device` is one.
        """
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        os.environ["LOCAL_RANK"] = str(self.rank)  # transformers' loader takes the device from it
        own = None
        if device.type == "cuda":
            own = torch.device("cuda", self.rank)
            torch.cuda.set_device(own)
        file = dist.FileStore(str(store), self.size)  # type: ignore[attr-defined]
        file.set(f"up {self.rank}", "1")
        until_s = time.monotonic() + MEET_S
        while not file.check([f"up {rank}" for rank in range(self.size)]):
            if give_up() or time.monotonic() > until_s:
                raise TimeoutError(f"rank {self.rank} met nobody")
            time.sleep(0.002)
        dist.init_process_group(
            "gloo" if own is None else "cpu:gloo,cuda:nccl",
            store=file,
            rank=self.rank,
            world_size=self.size,
            timeout=datetime.timedelta(seconds=MEET_S),
            device_id=own,
        )
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=timeout_s))

    @staticmethod
    def leave() -> None:
        """Part from the others, present or not."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def share(self, whole: int) -> int:
        """This rank's part of `whole` things (threads, bytes), at least 1."""
        return max(1, whole // self.size)

    def bounds(self, whole: int) -> tuple[int, int]:
        """
        The half-open range of `whole` features that this rank holds.

        All ranks hold ceil(whole / size) but the last ones, which may hold less: the way in which
        torch cuts a tensor into chunks.
        """
        width = -(-whole // self.size)
        return min(whole, self.rank * width), min(whole, (self.rank + 1) * width)

    def add(self, part: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in place."""
        dist.all_reduce(part)
        return part

    def join_last(self, part: Tensor, *, whole: int) -> Tensor:
        """The ranks' tensors side by side, as `bounds` has it: (..., part) -> (..., whole)."""
        width = -(-whole // self.size)
        part = torch.nn.functional.pad(part, (0, width - part.shape[-1])).contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim=-1)[..., :whole]

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        told = torch.tensor([number])
        dist.all_reduce(told, op=dist.ReduceOp.MIN)
        return int(told[0])

    def tell_all(self, value: T | None) -> T | None:
        """Rank 0's value, at every rank."""
        told: list[T | None] = [value]
        dist.broadcast_object_list(told, src=0, device=_CPU)
        return told[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, at every rank; small ones."""
        told: list[T] = [value] * self.size
        dist.all_gather_object(told, value)
        return told
