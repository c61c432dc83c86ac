"""The load-time test of sliding windows: where they end, which 300 tokens may not reach."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.attention import NAME, current_step
from sloserve.model.batch import build_batch
from sloserve.model.kv import KvCache
from sloserve.model.path import AttentionPath
from sloserve.model.selftest import NUM_TOKENS, Mismatch
from sloserve.model.structure import AttentionLayer

_FIRST_MARK, _NUM_MARKS = 8, 16
_STARTS = (4, 16, 9)  # of the rows, past the window: a chunk and two decodes
_COUNTS = (20, 1, 1)


class _Layer(nn.Module):
    layer_idx = 0


def check_windows(
    name: str,
    layers: Sequence[AttentionLayer],
    *,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    path: AttentionPath,
) -> None:
    """
    Raises Mismatch when a window ends at the wrong key, for windows that requests can outgrow and
    that the tokens of the self-test don't go far past.

    Every kind of layer is asked for queries just past its window, over keys of zeros: weights
    are then equal, and values that are 0 but for a few marked keys count those that are seen.
    Costs one attention call per kind, without a forward pass.
    """
    tried = set()
    for number, layer in enumerate(layers):
        window = layer.terms.window
        kind = (layer.shape, layer.num_heads, window, layer.terms.softcap)
        if window is None or kind in tried or not NUM_TOKENS / 2 <= window < max_model_len:
            continue
        tried.add(kind)
        seen, expected, unit = _count(layer, window, dtype=dtype, device=device, path=path)
        wrong = ((seen - expected).abs() > unit / 4) | seen.isnan()
        if bool(wrong.any()):
            row, head = (int(i) for i in wrong.nonzero()[0])
            raise Mismatch(
                f"{name} can't be served: with a window of {window}, attention of layer {number} "
                f"(head {head}) sees {float(seen[row, head] / unit[0, head]):.1f} of "
                f"{_NUM_MARKS} keys near the window's end, "
                f"{float(expected[row, head] / unit[0, head]):.0f} are right"
            )


def _count(
    layer: AttentionLayer,
    window: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    path: AttentionPath,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    What attention says, what is right (num_queries, H), and what one key counts (1, H).

    Query i sees marked keys j with i - window < j; each adds value * weight =
    window / (window + exp(sink)).
    """
    num_tokens = window + _STARTS[0] + _COUNTS[0]
    num_blocks = -(-num_tokens // path.block_size)
    cache = KvCache(
        [layer.shape],
        num_blocks=num_blocks,
        block_size=path.block_size,
        dtype=dtype,
        device=device,
        path=path,
    )
    marked = torch.arange(_FIRST_MARK, _FIRST_MARK + _NUM_MARKS, device=device)
    shape = layer.shape
    cache.write(
        0,
        marked,
        torch.zeros(shape.num_kv_heads, _NUM_MARKS, shape.key_size, dtype=dtype, device=device),
        torch.full(
            (shape.num_kv_heads, _NUM_MARKS, shape.value_size), window, dtype=dtype, device=device
        ),
    )
    tokens, table = range(num_tokens), range(num_blocks)
    rows = [
        StepRow(
            request_id=0,
            tokens=tokens,
            num_prompt=num_tokens,
            start=window + start,
            count=count,
            block_table=list(table),
            sample=False,
            sampling=SamplingParams(),
        )
        for start, count in zip(_STARTS, _COUNTS, strict=True)
    ]
    batch = build_batch(rows, block_size=path.block_size, device=device)
    num_padded = batch.input_ids.shape[1]
    terms = layer.terms
    with torch.inference_mode(), current_step(batch, cache):
        out, _ = ALL_ATTENTION_FUNCTIONS[NAME](
            _Layer(),
            torch.ones(1, layer.num_heads, num_padded, shape.key_size, dtype=dtype, device=device),
            *(
                torch.zeros(1, shape.num_kv_heads, num_padded, size, dtype=dtype, device=device)
                for size in (shape.key_size, shape.value_size)
            ),
            None,
            scaling=terms.scaling,
            sliding_window=window,
            softcap=terms.softcap,
            s_aux=terms.sinks,
        )
    seen = out[0, : batch.slots.shape[0], :, 0].float().cpu()  # (num_queries, H)
    queries = batch.positions[0, : seen.shape[0]].cpu()
    num_seen = (marked.cpu() > queries[:, None] - window).sum(1)
    unit = torch.ones(1, layer.num_heads)
    if terms.sinks is not None:
        unit = window / (window + terms.sinks.float().cpu().exp()[None])
    return seen, num_seen[:, None] * unit, unit
