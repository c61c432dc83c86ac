"""Attention modules with one product for queries, keys and values, turned where they lie."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sloserve.model.attention import running_step
from sloserve.model.lean.kernels import LayerKernels, TurnCall
from sloserve.model.lean.merging import merge, parts
from sloserve.model.lean.norm import Norming, ways_to_norm
from sloserve.model.linear import PackedLinear
from sloserve.model.structure import AttentionLayer

Heads = tuple[Tensor, Tensor, Tensor]


class LeanAttention(nn.Module):
    """
    Queries, keys and values by one product, normed per head where the model does, turned by their
    positions, attended over the cache of the running step. One thread at a time may call it.
    """

    def __init__(
        self,
        number: int,
        layer: AttentionLayer,
        *,
        product: PackedLinear,
        out: PackedLinear,
        norms: tuple[Norming, Norming] | None,
        turns: bool,
        kernels: LayerKernels,
    ) -> None:
        super().__init__()
        self.layer_idx = number
        self.product = product
        self.out = out
        self._terms = layer.terms
        shape = layer.shape
        self._num_heads = (layer.num_heads, shape.num_kv_heads)
        self._num_turned = sum(self._num_heads) * shape.key_size
        self._sizes = (shape.key_size, shape.value_size)
        self._norms, self._turns = norms, turns  # held for their memory
        self._kernel = kernels.turn
        self._call = TurnCall(
            token_stride=product.out_features,
            num_queries=layer.num_heads,
            num_keys=shape.num_kv_heads,
            size=shape.key_size,
        )
        if norms is not None:
            for_queries, for_keys = norms
            self._call.query_weight = for_queries.weight.data_ptr()
            self._call.key_weight = for_keys.weight.data_ptr()
            self._call.epsilon = for_queries.epsilon
            self._call.round_first = for_queries.round_first

    def heads(self, x: Tensor, positions: tuple[Tensor, Tensor] | None) -> Heads:
        """
        (1, P, hidden) and (cosine, sine) of (1, P, turned) -> queries (H, P, size), keys
        (Hkv, P, size) and values (Hkv, P, value size), which are views.
        """
        both = self.product(x)[0]
        call = self._call
        call.heads, call.tokens, call.turned = both.data_ptr(), both.shape[0], 0
        if self._turns:
            assert positions is not None
            cosine, sine = positions[0].contiguous(), positions[1].contiguous()
            call.cosine, call.sine = cosine.data_ptr(), sine.data_ptr()
            call.turned = cosine.shape[-1]
        if self._turns or self._norms is not None:
            self._kernel(call, both.numel())
        num, row = both.shape
        key_size, value_size = self._sizes
        (queries, keys), end = self._num_heads, self._num_turned
        return (
            both.as_strided((queries, num, key_size), (key_size, row, 1)),
            both.as_strided((keys, num, key_size), (key_size, row, 1), queries * key_size),
            both.as_strided((keys, num, value_size), (value_size, row, 1), end),
        )

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[Tensor, None]:
        """(1, P, hidden) -> (1, P, hidden)."""
        batch, cache = running_step()
        query, key, value = self.heads(hidden_states, position_embeddings)
        attended = cache.path.attend(
            self.layer_idx, query, key, value, batch=batch, cache=cache, terms=self._terms
        )
        return self.out(attended.flatten(1)[None]), None


def lean_attentions(
    module: nn.Module, layer: AttentionLayer, kernels: LayerKernels
) -> Iterator[LeanAttention]:
    """What may compute the same as an attention module with this layer."""
    linears, norms = parts(module)
    if set(linears) == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        merged = [linears["q_proj"], linears["k_proj"], linears["v_proj"]]
    elif set(linears) == {"qkv_proj", "o_proj"}:
        merged = [linears["qkv_proj"]]
    else:
        return
    if any(True for _ in module.parameters(recurse=False)) or not _fits(merged, layer, kernels):
        return
    ways: list[tuple[Norming, Norming] | None] = [None]
    if set(norms) == {"q_norm", "k_norm"}:
        pairs = zip(ways_to_norm(norms["q_norm"]), ways_to_norm(norms["k_norm"]), strict=False)
        size = layer.shape.key_size
        ways = [(q, k) for q, k in pairs if q.weight.numel() == k.weight.numel() == size]
    elif norms:
        return
    product, out = merge(merged), merge([linears["o_proj"]])
    for way in ways:
        for turns in (True, False):
            yield LeanAttention(
                int(module.layer_idx),  # type: ignore[arg-type]
                layer,
                product=product,
                out=out,
                norms=way,
                turns=turns,
                kernels=kernels,
            )


def _fits(linears: list[nn.Linear], layer: AttentionLayer, kernels: LayerKernels) -> bool:
    shape = layer.shape
    features = layer.num_heads * shape.key_size
    features += shape.num_kv_heads * (shape.key_size + shape.value_size)
    given = sum(linear.out_features for linear in linears)
    return given == features and shape.key_size <= kernels.longest_head
