"""Attention over pages against the textbook, position by position."""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.attention import current_step, paged_attention
from sloserve.model.batch import (
    FREE_WASTE_PAGES,
    MAX_WASTE,
    build_batch,
    decode_groups,
    padded_size,
)
from sloserve.model.kv import KvCache, LayerShape

CPU = torch.device("cpu")


class Layer(nn.Module):
    layer_idx = 0


def a_cache(kv_heads: int, size: int, *, num_blocks: int = 64, block_size: int = 4) -> KvCache:
    return KvCache(
        [LayerShape(kv_heads, size, size)],
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=torch.float32,
        device=CPU,
    )


def a_row(start: int, count: int, table: list[int], *, sample: bool = False) -> StepRow:
    return StepRow(
        request_id=0,
        tokens=list(range(start + count)),
        num_prompt=start + count,
        start=start,
        count=count,
        block_table=table,
        sample=sample,
        sampling=SamplingParams(),
    )


def textbook(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    start: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query (H, n, D) from position `start`, keys (Hkv, len, D) -> (n, H, D), key by key."""
    heads, count, _ = query.shape
    group = heads // keys.shape[0]
    out = torch.zeros(count, heads, values.shape[2])
    for h in range(heads):
        for i in range(count):
            seen = [j for j in range(start + i + 1) if window is None or start + i - j < window]
            scores = keys[h // group, seen] @ query[h, i] * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (sinks[h].exp() if sinks is not None else 0)
            out[i, h] = (weights / total) @ values[h // group, seen]
    return out


CASES = [
    # heads, kv heads, size, window, softcap, sinks
    (4, 4, 32, None, None, False),
    (4, 2, 64, None, None, False),
    (8, 1, 16, None, None, False),
    (6, 2, 256, None, None, False),
    (4, 2, 32, 5, None, False),
    (4, 2, 32, 1, None, False),
    (4, 2, 32, None, 1.5, False),
    (4, 2, 32, 6, 1.5, False),
    (4, 2, 32, None, None, True),
    (4, 2, 32, 5, 1.5, True),
]


@pytest.mark.parametrize(("heads", "kv_heads", "size", "window", "softcap", "sinks"), CASES)
def test_ragged_steps_attend_as_the_textbook_says(
    heads: int, kv_heads: int, size: int, window: int | None, softcap: float | None, sinks: bool
) -> None:
    torch.manual_seed(1)
    cache = a_cache(kv_heads, size)
    pages = list(range(64))
    random.Random(2).shuffle(pages)
    # per request: the ends of its chunks. Empty context, page borders (4), single tokens, mixes
    ends = [
        [3, 4, 5, 8, 9, 20],
        [1, 2, 3, 4, 5, 6],
        [8, 16, 17, 18, 19, 20],
        [13, 14, 22, 23, 24, 29],
    ]
    tables = [pages[8 * i : 8 * i + 8] for i in range(3)] + [list(range(60, 68))]
    tables[3] = sorted(pages[24:32])
    history = [(torch.empty(kv_heads, 0, size), torch.empty(kv_heads, 0, size)) for _ in ends]
    aux = torch.randn(heads) if sinks else None
    scaling = 0.3
    for step in range(6):
        rows = [
            a_row(([0, *e])[step], e[step] - ([0, *e])[step], table)
            for e, table in zip(ends, tables, strict=True)
        ]
        batch = build_batch(rows, block_size=4, device=CPU)
        num = batch.input_ids.shape[1]
        query = torch.randn(1, heads, num, size)
        key, value = torch.randn(1, kv_heads, num, size), torch.randn(1, kv_heads, num, size)
        with torch.inference_mode(), current_step(batch, cache):
            out, _ = paged_attention(
                Layer(),
                query,
                key,
                value,
                None,
                scaling=scaling,
                sliding_window=window,
                softcap=softcap,
                s_aux=aux,
                position_ids=batch.positions,
            )
        for i, row in enumerate(rows):
            here = slice(batch.first[i], batch.first[i] + row.count)
            history[i] = (
                torch.cat((history[i][0], key[0, :, here]), dim=1),
                torch.cat((history[i][1], value[0, :, here]), dim=1),
            )
            expected = textbook(
                query[0, :, here],
                *history[i],
                start=row.start,
                scaling=scaling,
                window=window,
                softcap=softcap,
                sinks=aux,
            )
            assert torch.allclose(out[0, here], expected, atol=2e-5)


def test_positions_and_slots_follow_the_block_table() -> None:
    rows = [a_row(3, 6, [9, 2, 5], sample=True), a_row(7, 1, [1, 8], sample=True)]
    batch = build_batch(rows, block_size=4, device=CPU)
    assert batch.first == [1, 0]  # decodes come first
    assert batch.positions.tolist() == [[7, 3, 4, 5, 6, 7, 8]]
    assert batch.slots.tolist() == [35, 39, 8, 9, 10, 11, 20]
    assert batch.keep.tolist() == [6, 0]  # in the order of the rows
    assert batch.sampled == [0, 1]


def test_a_step_is_padded_behind_its_tokens_and_padding_is_written_nowhere() -> None:
    rows = [a_row(0, 36, list(range(9)), sample=True), a_row(7, 1, [10, 11], sample=True)]
    batch = build_batch(rows, block_size=4, device=CPU)
    assert batch.input_ids.shape == batch.positions.shape == (1, padded_size(37))
    assert batch.slots.shape == (37,)
    assert batch.keep.tolist() == [36, 0]


def test_padding_takes_an_eighth_at_most_and_leaves_few_sizes() -> None:
    sizes = {n: padded_size(n) for n in range(1, 4097)}
    assert all(n <= size <= n * 9 / 8 for n, size in sizes.items())
    assert all(sizes[size] == size for size in sizes.values() if size in sizes)
    assert len(set(sizes.values())) == 16 + 8 * 8
    assert all(sizes[n] == n for n in range(1, 17))


def test_groups_of_decodes_waste_little_and_cover_every_row() -> None:
    source = random.Random(4)
    for _ in range(200):
        pages = sorted(
            (source.randrange(1, 400) for _ in range(source.randrange(40))), reverse=True
        )
        groups = decode_groups(pages)
        assert [i for begin, end in groups for i in range(begin, end)] == list(range(len(pages)))
        for begin, end in groups:
            padded = pages[begin] * (end - begin)
            waste = padded - sum(pages[begin:end])
            assert waste <= max(FREE_WASTE_PAGES, MAX_WASTE * padded)
    assert decode_groups([]) == []
    assert decode_groups([9, 9, 8, 8]) == [(0, 4)]
    assert decode_groups([400, 3, 3]) == [(0, 1), (1, 3)]
    assert all(a[1] == b[0] for a, b in pairwise(decode_groups(list(range(300, 0, -7)))))
