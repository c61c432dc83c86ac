"""What every way to attend has in common: torch's own kernels, ours, those of a GPU."""

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from sloserve.model.batch import Batch
from sloserve.model.terms import Terms

if TYPE_CHECKING:
    from sloserve.model.kv import KvCache


class AttentionPath(Protocol):
    """Computes attention over a paged cache. A cache has one (`KvCache.path`)."""

    name: str
    """As it is asked for (`engine.attention`) and told in the log."""
    block_size: int
    """Tokens of a page that suit it."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        batch: Batch,
        cache: "KvCache",
        terms: Terms,
    ) -> Tensor:
        """
        Write the step's keys and values to `batch.slots`, then attend as `terms` say.

        query (H, P, D), key (Hkv, P, D), value (Hkv, P, Dv), all in the cache's dtype and of any
        strides -> (P, H, Dv). Tokens past the step's own (padding) must not be attended; what
        comes out for them is 0.
        """
        ...
