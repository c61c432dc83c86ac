"""Steps on a GPU: decodes by graphs, the rest as on any device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sloserve.engine.runner import ModelFacts, Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import Batch
from sloserve.model.cuda_graphs import DecodeGraphs
from sloserve.model.drafting import DraftModel
from sloserve.model.kv import KvCache
from sloserve.model.lora.adapters import Adapters
from sloserve.model.runner import TorchRunner


class CudaGraph:
    """A CUDA graph as `cuda_graphs.Graph`; those made with one `pool` share their memory."""

    def __init__(self, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def capture(self, body: Callable[[], Tensor]) -> Tensor:
        """Runs `body` three times, twice beforehand: kernels are compiled at their first use."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            body()
            body()
        torch.cuda.current_stream().wait_stream(side)
        # what other threads ask of the device meanwhile is no business of this capture
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            return body()

    def replay(self) -> None:
        """Put the work on the current stream."""
        self._graph.replay()


class GraphRunner(TorchRunner):
    """`TorchRunner` whose decode steps are graphs, where `graphs` has one for them."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        cache: KvCache,
        facts: ModelFacts,
        graphs: DecodeGraphs | None,
        defaults: SamplingParams | None = None,
        drafter: DraftModel | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        super().__init__(
            model, cache=cache, facts=facts, defaults=defaults, drafter=drafter, adapters=adapters
        )
        self.graphs = graphs

    def _compute(self, rows: Sequence[StepRow]) -> tuple[Batch, Tensor]:
        captured = None
        if self.graphs is not None and not any([row.adapter for row in rows]):
            captured = self.graphs.step(rows)  # they are of the model without adapters
        return captured or super()._compute(rows)


class CudaRunner(GraphRunner):
    """
    A `GraphRunner` on a GPU.

    A step ends when the device is done with it, whether or not there was a token to wait for:
    the loop takes its time. `last_forward_s` is the device's own, from the copies to the logits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        cache: KvCache,
        facts: ModelFacts,
        graphs: DecodeGraphs | None,
        defaults: SamplingParams | None = None,
        drafter: DraftModel | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        super().__init__(
            model,
            cache=cache,
            facts=facts,
            graphs=graphs,
            defaults=defaults,
            drafter=drafter,
            adapters=adapters,
        )
        self._begin, self._end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        """One forward pass over one ragged batch; the outcomes in the order of `rows`."""
        outcomes = super().step(rows)
        self._end.synchronize()
        self.last_forward_s = self._begin.elapsed_time(self._end) / 1e3
        return outcomes

    def close(self) -> None:
        """Give back the memory; no step may follow."""
        self.graphs = None
        super().close()
        torch.cuda.empty_cache()

    def _compute(self, rows: Sequence[StepRow]) -> tuple[Batch, Tensor]:
        self._begin.record()
        computed = super()._compute(rows)
        self._end.record()
        return computed
