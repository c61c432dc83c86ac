"""What loading a model on a GPU adds: graphs of its decode steps, and words for a full memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel

from sloserve.engine.runner import ModelFacts, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.model.batch import build_batch
from sloserve.model.cuda_flash import FlashPath
from sloserve.model.cuda_graphs import DecodeGraphs, graph_sizes
from sloserve.model.cuda_runner import CudaGraph, CudaRunner
from sloserve.model.drafting import DraftModel
from sloserve.model.kv import KvCache, readable
from sloserve.model.lora.adapters import Adapters
from sloserve.model.runner import forward
from sloserve.model.triton_attention import TritonPath

_log = logging.getLogger(__name__)

_CAPTURED = (TritonPath, FlashPath)
"""Paths whose launches depend on nothing that changes between the steps of a graph."""


def cuda_runner(
    model: PreTrainedModel,
    *,
    cache: KvCache,
    facts: ModelFacts,
    defaults: SamplingParams,
    max_rows: int,
    drafter: DraftModel | None = None,
    adapters: Adapters | None = None,
    in_graphs: bool = True,
) -> CudaRunner:
    """
    The runner of a tested model on a GPU, its decode steps of up to `max_rows` rows captured.

    `cache` has one page more than `facts` tell of: the padding of graphs writes there.
    """
    for step in warm_up_steps(facts.max_model_len):
        _run(model, cache, step)
    graphs = None
    if in_graphs and isinstance(cache.path, _CAPTURED):
        pool = torch.cuda.graph_pool_handle()
        graphs = DecodeGraphs(
            model,
            cache,
            sizes=graph_sizes(max_rows),
            max_model_len=facts.max_model_len,
            new_graph=partial(CudaGraph, pool),
        )
        graphs.capture()
        _log.info("decode steps of up to %d rows are CUDA graphs", max((0, *graphs.sizes)))
    else:
        why = f"attention is {cache.path.name}" if in_graphs else "the model is on several GPUs"
        _log.info("decode steps run without CUDA graphs: %s", why)
    return CudaRunner(
        model,
        cache=cache,
        facts=facts,
        graphs=graphs,
        defaults=defaults,
        drafter=drafter,
        adapters=adapters,
    )


def warm_up_steps(max_model_len: int) -> list[tuple[int, int]]:
    """
    One row (context, tokens) for each step to run beforehand.

    A kernel is compiled when a launch first needs it, which takes a second or two and would break
    promises later. Which variant is needed follows from the tokens of a row, by powers of two up
    to 16 (drafts) and beyond (chunks), and from whether its keys are split.
    """
    counts = [n for n in (1, 2, 4, 8, 16, 17, 33, 65, 129) if n <= max_model_len]
    return [(context, n) for n in counts for context in dict.fromkeys((0, max_model_len - n))]


def _run(model: PreTrainedModel, cache: KvCache, step: tuple[int, int]) -> None:
    """A forward pass over pages that hold nothing; it leaves them so."""
    context, count = step
    num_pages = -(-(context + count) // cache.block_size)
    row = StepRow(
        request_id=0,
        tokens=[0] * (context + count),
        num_prompt=context + count,
        start=context,
        count=count,
        block_table=[page % cache.num_blocks for page in range(num_pages)],
        sample=True,
        sampling=SamplingParams(),
    )
    batch = build_batch([row], block_size=cache.block_size, device=cache.device)
    with torch.inference_mode():
        forward(model, batch, cache)
        for memory in (memory for pair in cache.layers for memory in pair):
            memory.view(-1, *memory.shape[2:]).index_fill_(0, batch.slots, 0)


@contextmanager
def out_of_memory_told(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """
    Turns an out-of-memory error within into BadInput with the arithmetic.

    The weights need their own size; a load-time test in 16 bits twice that for a moment, since it
    widens them to float32.
    """
    sizes = [(p.numel(), p.numel() * p.dtype.itemsize) for p in model.parameters()]
    try:
        yield
    except torch.OutOfMemoryError as error:
        weights = sum(num_bytes for _, num_bytes in sizes)
        widened = sum(max(4 * number, num_bytes) for number, num_bytes in sizes)
        free, total = torch.cuda.mem_get_info(device)
        raise BadInput(
            f"no memory for the model on {device}: its weights are {readable(weights)} and the "
            f"load-time test widens them to {readable(widened)}; the device has "
            f"{readable(total)}, of which {readable(free)} are free now. Take a larger device, a "
            f"smaller model, or stop what else runs there",
            field="model.source",
        ) from error
