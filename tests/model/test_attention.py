"""Attention over pages against the textbook, position by position."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.model.attention import current_step, paged_attention
from sloserve.model.batch import build_batch, padded_size
from sloserve.model.choice import choose_path
from sloserve.model.gathered import FREE_WASTE_PAGES, MAX_WASTE, Gathered, decode_groups
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.path import AttentionPath

CPU = torch.device("cpu")


class Layer(nn.Module):
    layer_idx = 0


@pytest.fixture(params=["torch", "compiled"])
def path(request: pytest.FixtureRequest) -> AttentionPath:
    """Each way to attend; the compiled one needs a C++ compiler."""
    try:
        return choose_path(
            request.param, device=CPU, dtype=torch.float32, layers=[LayerShape(1, 8, 8)]
        )
    except BadInput as error:
        pytest.skip(error.message)


def a_cache(
    shape: LayerShape,
    path: AttentionPath,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
) -> KvCache:
    return KvCache(
        [shape],
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=dtype,
        device=CPU,
        path=path,
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
    (3, 3, 20, None, None, False),
    (10, 2, 8, 7, None, True),
]


@pytest.mark.parametrize(("heads", "kv_heads", "size", "window", "softcap", "sinks"), CASES)
def test_ragged_steps_attend_as_the_textbook_says(
    heads: int,
    kv_heads: int,
    size: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    path: AttentionPath,
) -> None:
    torch.manual_seed(1)
    value_size = size - 3 if size == 20 else size
    cache = a_cache(LayerShape(kv_heads, size, value_size), path)
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
    history = [(torch.empty(kv_heads, 0, size), torch.empty(kv_heads, 0, value_size)) for _ in ends]
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
        key = torch.randn(1, kv_heads, num, size)
        value = torch.randn(1, kv_heads, num, value_size)
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
        assert not out[0, batch.slots.shape[0] :].any()


LONG = [(900, 1), (257, 1), (256, 1), (40, 1), (0, 600), (300, 70), (513, 5), (16, 2)]
"""Rows as (context, count): past one part of 256 keys, at its borders, decodes and chunks."""


def attend(
    path: AttentionPath,
    rows: list[tuple[int, int]],
    *,
    shape: LayerShape,
    heads: int,
    dtype: torch.dtype = torch.float32,
    terms: dict[str, Any],
) -> list[Tensor]:
    """What each row gets, (count, H, Dv), over a cache and queries that depend on it alone."""
    tables, at = [], 0
    for context, count in rows:
        num_pages = -(-(context + count) // 16)
        tables.append(list(range(at, at + num_pages))[::-1])
        at += num_pages
    cache = a_cache(shape, path, num_blocks=at, block_size=16, dtype=dtype)
    batch = build_batch(
        [a_row(c, n, table) for (c, n), table in zip(rows, tables, strict=True)],
        block_size=16,
        device=CPU,
    )
    num_padded = batch.input_ids.shape[1]
    query = torch.zeros(1, num_padded, heads, shape.key_size, dtype=dtype)
    key = torch.zeros(1, num_padded, shape.num_kv_heads, shape.key_size, dtype=dtype)
    value = torch.zeros(1, num_padded, shape.num_kv_heads, shape.value_size, dtype=dtype)
    for (context, count), table, first in zip(rows, tables, batch.first, strict=True):
        random_ = torch.Generator().manual_seed(context + count)
        of_all = [
            torch.randn(context + count, n, size, generator=random_).to(dtype)
            for n, size in (
                (heads, shape.key_size),
                (shape.num_kv_heads, shape.key_size),
                (shape.num_kv_heads, shape.value_size),
            )
        ]
        slots = torch.tensor([table[i // 16] * 16 + i % 16 for i in range(context)]).long()
        cache.write(0, slots, of_all[1].transpose(0, 1), of_all[2].transpose(0, 1))
        for into, of in zip((query, key, value), of_all, strict=True):
            into[0, first : first + count] = of[context:]
    with torch.inference_mode(), current_step(batch, cache):
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        out, _ = paged_attention(Layer(), query, key, value, None, **terms)
    return [
        out[0, first : first + count] for first, (_, count) in zip(batch.first, rows, strict=True)
    ]


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"sliding_window": 300},
        {"sliding_window": 3, "softcap": 2.0},
        {"s_aux": torch.linspace(-2, 3, 8)},
    ],
    ids=lambda terms: "-".join(terms) or "plain",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_contexts_attend_as_torch_does(
    path: AttentionPath, terms: dict[str, Any], dtype: torch.dtype
) -> None:
    shape = LayerShape(2, 64, 48)
    out = attend(path, LONG, shape=shape, heads=8, dtype=dtype, terms=terms)
    exact = attend(Gathered(), LONG, shape=shape, heads=8, terms=terms)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for own, right in zip(out, exact, strict=True):
        assert torch.allclose(own.float(), right, atol=tolerance, rtol=tolerance)


def test_the_compiled_kernel_gives_a_request_the_same_bits_in_any_company() -> None:
    try:
        path = choose_path(
            "compiled", device=CPU, dtype=torch.float32, layers=[LayerShape(1, 8, 8)]
        )
    except BadInput as error:
        pytest.skip(error.message)
    shape = LayerShape(2, 64, 64)
    together = attend(path, LONG, shape=shape, heads=6, terms={})
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for row, among_others in zip(LONG, together, strict=True):
            alone = attend(path, [row], shape=shape, heads=6, terms={})[0]
            assert torch.equal(alone, among_others)


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
