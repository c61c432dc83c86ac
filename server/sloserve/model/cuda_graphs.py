"""
Decode steps as CUDA graphs: one launch instead of thousands.

A graph is captured for each of a few batch sizes. A step fills the size above its own: its numbers
are copied into the memory that the graph reads, rows that are padding see no key and write to a
page that nobody has. All sizes read one piece of memory and leave their logits in another.
"""

import logging
from array import array
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import Batch, Tables, build_batch
from sloserve.model.kv import KvCache
from sloserve.model.runner import forward
from sloserve.model.verify import places_of

_log = logging.getLogger(__name__)

MAX_ROWS = 256
_CHECK_TOKENS = 50  # the longest context of the rows by which a captured graph is checked
_CHECK_TOLERANCE = {4: 1e-3, 2: 5e-2}  # by bytes of a number; times the largest logit


class Graph(Protocol):
    """What runs one body again and again without its Python (`CudaGraph`)."""

    def capture(self, body: Callable[[], Tensor]) -> Tensor:
        """Run `body` and keep its work; the tensor that it returned, which replays fill anew."""
        ...

    def replay(self) -> None:
        """Do the work of `body` once more, on whatever its tensors hold now."""
        ...


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Batch sizes to capture, up to 256: a step has at most 15 rows of padding."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, MAX_ROWS + 1, 16)]
    return (*(size for size in sizes if size < min(max_rows, MAX_ROWS)), min(max_rows, MAX_ROWS))


def decode_numbers(
    rows: Sequence[StepRow], *, size: int, block_size: int, scratch_block: int
) -> "array[int]":
    """
    What a graph of `size` rows reads, one after the other: token ids, positions, slots, contexts
    (`size` numbers each), page_begins (`size` + 1), pages.
    """
    num_padding = size - len(rows)
    starts = [row.start for row in rows]
    slots: list[int] = []
    pages: list[int] = []
    page_begins = [0]
    for row, start in zip(rows, starts, strict=True):  # per row and step: kept lean
        page, offset = divmod(start, block_size)
        pages += row.block_table[: page + 1]
        page_begins.append(len(pages))
        slots.append(pages[-1] * block_size + offset)
    numbers = [row.tokens[start] for row, start in zip(rows, starts, strict=True)]
    numbers += [0] * num_padding
    numbers += starts
    numbers += [0] * num_padding
    numbers += slots
    numbers += [scratch_block * block_size] * num_padding
    numbers += starts
    numbers += [-1] * num_padding
    numbers += page_begins
    numbers += [len(pages)] * num_padding
    numbers += pages
    return array("q", numbers)


class DecodeGraphs:
    """
    The graphs of one model over one cache, whose last page must be nobody's.

    `step` answers for steps of decodes alone; where a model can't be captured, for none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KvCache,
        *,
        sizes: Sequence[int],
        max_model_len: int,
        new_graph: Callable[[], Graph],
    ) -> None:
        self._model = model
        self._cache = cache
        self._max_pages = -(-max_model_len // cache.block_size)
        self._max_model_len = max_model_len
        self._new_graph = new_graph
        self._sizes = tuple(sorted(sizes))
        self._graphs: dict[int, Graph] = {}
        self._logits: Tensor | None = None  # (largest size, vocabulary)
        most = self._sizes[-1]
        self._memory = torch.zeros(
            5 * most + 1 + most * self._max_pages, dtype=torch.int64, device=cache.device
        )
        self._counting = torch.arange(most + 1, device=cache.device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that are captured."""
        return tuple(sorted(self._graphs))

    def capture(self) -> None:
        """
        Capture and check every size, the largest first (the others then reuse its memory).

        A model that waits for the device in its forward pass can't be captured: no size is kept
        then, and the log says why.
        """
        try:
            with torch.inference_mode():
                for size in reversed(self._sizes):
                    self._capture(size)
                    self._check(size)
        except Exception as error:  # whatever a model does, and whatever CUDA says to it
            self._graphs.clear()
            self._logits = None
            _log.warning("decode steps run without CUDA graphs: %s", error)

    def step(self, rows: Sequence[StepRow]) -> tuple[Batch, Tensor] | None:
        """
        The step's batch and the logits (S, vocabulary) of the rows that sample, valid until the
        next step, each followed by those after its drafts. None when this is no step for a graph:
        chunks, prompt logprobs, too many rows.

        A draft is a row like any other, as in `build_batch`.
        """
        drafted = any([row.drafts for row in rows])
        places = places_of(rows) if drafted else rows
        size = next((size for size in self.sizes if size >= len(places)), None)
        if size is None or not all(map(_is_decode, rows)):
            return None
        batch = self._batch(size, rows)
        numbers = decode_numbers(
            places,
            size=size,
            block_size=self._cache.block_size,
            scratch_block=self._cache.num_blocks - 1,
        )
        given = torch.frombuffer(numbers, dtype=torch.int64)
        if self._memory.device.type == "cuda":
            given = given.pin_memory()  # from pageable memory the host would wait for the device
        self._memory[: len(numbers)].copy_(given, non_blocking=True)
        self._graphs[size].replay()
        assert self._logits is not None
        logits = self._logits[: len(places)]
        if len(batch.sampled) < len(rows):
            logits = logits[[i for i, place in enumerate(places) if place.sample]]
        return batch, logits

    def replay(self, size: int) -> None:
        """Run the graph of that captured size on what its memory holds, as a benchmark does."""
        self._graphs[size].replay()

    def _batch(self, size: int, rows: Sequence[StepRow] = ()) -> Batch:
        """Views of the memory that the graph of that size reads; what the host knows of `rows`."""
        first, num_places = [], 0
        for row in rows:
            first.append(num_places)
            num_places += 1 + len(row.drafts)
        ids, positions, slots, contexts, page_begins, pages = self._memory[
            : 5 * size + 1 + size * self._max_pages
        ].split([size, size, size, size, size + 1, size * self._max_pages])  # type: ignore[no-untyped-call]
        return Batch(
            input_ids=ids.unsqueeze(0),
            positions=positions.unsqueeze(0),
            slots=slots,
            keep=self._counting[:size],
            tables=Tables(self._counting[: size + 1], contexts, page_begins, pages),
            num_decodes=size,
            begins=list(range(size + 1)),
            contexts=[self._max_model_len - 1] * size,  # upper bounds, as are the pages
            page_begins=[i * self._max_pages for i in range(size + 1)],
            page_list=[],
            first=first,
            sampled=[i for i, row in enumerate(rows) if row.sample],
            prompts=[],
        )

    def _capture(self, size: int) -> None:
        batch = self._batch(size)
        self._memory.zero_()
        batch.slots.fill_((self._cache.num_blocks - 1) * self._cache.block_size)
        batch.tables.contexts.fill_(-1)

        def body() -> Tensor:
            batch.kept.clear()  # what a path derives from the tables is part of the graph
            logits = forward(self._model, batch, self._cache)
            if self._logits is None:
                self._logits = torch.empty_like(logits)
            return self._logits[:size].copy_(logits)

        graph = self._new_graph()
        graph.capture(body)
        self._graphs[size] = graph

    def _check(self, size: int) -> None:
        """Raises ValueError unless the graph says what the model says, step by step."""
        cache = self._cache
        longest = min(_CHECK_TOKENS, self._max_model_len)
        num_shared = -(-longest // cache.block_size)
        num_rows = min(size, cache.num_blocks - 1 - num_shared)
        used = slice(num_shared + num_rows)
        for memory in (memory for pair in cache.layers for memory in pair):
            memory[used].normal_()
        rows = [_check_row(i, longest, num_shared, cache.block_size) for i in range(num_rows)]
        own = self.step(rows)
        assert own is not None
        captured = own[1].clone()
        batch = build_batch(rows, block_size=cache.block_size, device=cache.device)
        plain = forward(self._model, batch, cache)
        for memory in (memory for pair in cache.layers for memory in pair):
            memory[used].zero_()
        allowed = _CHECK_TOLERANCE[plain.dtype.itemsize] * float(plain.abs().max())
        worst = float((captured - plain).abs().max())
        if not worst <= allowed:  # NaN fails too
            raise ValueError(
                f"a graph of {size} rows is off by {worst:.2e}, allowed are {allowed:.2e}"
            )


def _is_decode(row: StepRow) -> bool:
    return row.count == 1 and row.sampling.prompt_logprobs is None


def _check_row(number: int, longest: int, num_shared: int, block_size: int) -> StepRow:
    """A decode after some of `longest` tokens, on shared pages but for the one it writes to."""
    start = (longest - 1) * (7 * number % 8 + 1) // 8
    return StepRow(
        request_id=number,
        tokens=range(longest),
        num_prompt=1,
        start=start,
        count=1,
        block_table=[*range(start // block_size), num_shared + number],
        sample=True,
        sampling=SamplingParams(),
    )
