"""Loading one model over several ranks, as rank 0 does it."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from transformers import PreTrainedConfig

from sloserve.errors import Failed
from sloserve.model import hardware
from sloserve.model.checkpoint import read_weights
from sloserve.model.kv import readable
from sloserve.model.parallel.orders import Load
from sloserve.model.parallel.plan import check_model, check_request
from sloserve.model.parallel.ranks import Ranks
from sloserve.model.parallel.seat import Seat
from sloserve.model.selftest import Mismatch, Reference, reference
from sloserve.model.terms import Unsupported
from sloserve.slo.service import EngineSpec, ModelSpec

if TYPE_CHECKING:
    from sloserve.model.runner import TorchRunner

_log = logging.getLogger(__name__)

T = TypeVar("T")

WHOLE_AT_MOST_BYTES = 32 << 30
"""Up to this size of its weights a model is also computed whole, once, on rank 0's host: a 16-bit
model of this size takes a minute or two there."""
WHOLE_FACTOR = 3
"""Memory for that, in sizes of its weights: themselves, and once more as float32."""


def load_over_ranks(
    path: Path,
    *,
    config: PreTrainedConfig,
    model: ModelSpec,
    engine: EngineSpec,
    adapters: Collection[str],
    load: Callable[[Seat], "TorchRunner"],
    ranks: Ranks | None = None,
) -> "TorchRunner":
    """
    The runner of the model in `path`, computed by `engine.tensor_parallel_size` processes.

    `load` loads this rank's part. Starts the other ranks, or uses `ranks`, which then stay when
    the runner is closed. Raises what any rank raises, after ending all.
    """
    check_request(engine, adapters=adapters)
    size = engine.tensor_parallel_size
    check_model(config, size=size)
    own = ranks is None
    if ranks is None:
        threads = max(1, (engine.threads or hardware.num_cores()) // size)
        ranks = Ranks(size, device=torch.device(engine.device), threads=threads)
    try:
        if own:
            ranks.join(timeout_s=model.load_timeout_s)
        ranks.tell(Load(path, model, engine))
        try:
            runner = load(ranks.seat)
            ranks.await_loaded(timeout_s=model.load_timeout_s)
        except Exception as error:
            raise ranks.explain(error) from error
    except BaseException:
        ranks.close(grace_s=0.0)
        raise
    runner.ranks = ranks
    runner.owns_ranks = own
    return runner


def whole_reference(
    path: Path, *, seat: Seat, dtype: torch.dtype, max_model_len: int, num_bytes: int
) -> Reference | None:
    """
    What the whole model says, computed by rank 0 on its host and told to all: the parts are
    compared with it. None where it is too large for that.
    """
    found: Reference | None = None
    if seat.rank == 0:
        host = torch.device("cpu")
        free = hardware.memory_bytes(host) - hardware.used_bytes(host)
        if num_bytes <= WHOLE_AT_MOST_BYTES and WHOLE_FACTOR * num_bytes <= free:
            whole = read_weights(path, dtype=dtype)
            whole.train(False).requires_grad_(False)
            found = reference(whole, max_model_len=max_model_len)
        else:
            _log.warning(
                "the parts of the model are compared with their own plain forward pass only: the "
                "whole one (%s) is too large to be computed on this host",
                readable(num_bytes),
            )
    return seat.tell_all(found)


def settle_together(seat: Seat | None, work: Callable[[], T]) -> T:
    """
    What `work` gives, unless it finds the model unfit at any rank: then Unsupported is raised at
    all of them, so that all go on in the same way.
    """
    if seat is None:
        return work()
    result: list[T] = []
    error: Unsupported | None = None
    try:
        result.append(work())
    except Unsupported as caught:
        error = caught
    told = seat.gather(None if error is None else (error.message, isinstance(error, Mismatch)))
    if error is not None:
        raise error
    for rank, one in enumerate(told):
        if one is not None:
            message, is_mismatch = one
            raise (Mismatch if is_mismatch else Unsupported)(f"rank {rank}: {message}")
    return result[0]


def same_everywhere(seat: Seat | None, what: str, value: str) -> None:
    """Raises Failed unless all ranks have the same `value`."""
    if seat is not None and len(set(found := seat.gather(value))) > 1:
        raise Failed(f"the ranks differ in their {what}: {', '.join(found)}")
