"""
Paged attention in Triton: prefill chunks, drafts and decodes by one kernel.

A program computes one *tile*: up to BLOCK_M // GROUP consecutive tokens of one row, for the GROUP
query heads that share a key head. Heads of a group lie side by side in the tile (row m of it is
token m // GROUP, head m % GROUP), so a lone decode still fills a matrix product, and a page of keys
is read once for all of them. With SPLIT the keys of a tile are shared out over `num_splits`
programs, which leave (maximum, sum, weighted values) for `combine`: the online softmax (Milakov
and Gimelshein 2018) is associative. Scores are kept in base 2.

Row r has the tokens begins[r] : begins[r + 1] of the batch, after contexts[r] tokens in the cache;
its pages are pages[page_begins[r] :]. A row whose context is -1 sees nothing and comes out as 0.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(float("-inf"))


# what differs from step to step must not ask for another variant of the kernel
@triton.jit(
    do_not_specialize=["window", "num_splits"],
    do_not_specialize_on_alignment=[
        "begins",
        "contexts",
        "page_begins",
        "pages",
        "tile_rows",
        "tile_firsts",
        "sinks",
    ],
)
def attend(
    out,  # (tokens, heads, VALUE); SPLIT: (tiles, kv_heads, BLOCK_M, num_splits, VALUE) float32
    maxima,  # SPLIT: (tiles, kv_heads, BLOCK_M, num_splits) float32
    sums,  # SPLIT: the same
    query,  # (tokens, heads, KEY), any strides but the last
    keys,  # (all pages, PAGE, kv_heads, KEY)
    values,  # (all pages, PAGE, kv_heads, VALUE)
    begins,  # (rows + 1)
    contexts,  # (rows)
    page_begins,  # (rows + 1)
    pages,
    tile_rows,  # (tiles): the row of a tile
    tile_firsts,  # (tiles): its first token, counted within the row
    sinks,  # (heads), with SINKS
    scaling,
    softcap,  # with SOFTCAP
    window,  # with WINDOW: a token sees itself and window - 1 keys before it
    num_splits,
    query_token,
    query_head,
    out_token,
    out_head,
    key_page,
    key_slot,
    key_head,
    value_page,
    value_slot,
    value_head,
    GROUP: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    row = tl.load(tile_rows + tile)
    first = tl.load(tile_firsts + tile).to(tl.int32)
    begin = tl.load(begins + row)
    count = (tl.load(begins + row + 1) - begin).to(tl.int32)
    context = tl.load(contexts + row).to(tl.int32)
    table = pages + tl.load(page_begins + row)

    m = tl.arange(0, BLOCK_M)
    token = first + m // GROUP
    head = kv_head * GROUP + m % GROUP
    filled = (m // GROUP < BLOCK_M // GROUP) & (token < count)
    position = context + token
    at = begin.to(tl.int64) + token
    k_at = tl.arange(0, KEY_PAD)
    v_at = tl.arange(0, VALUE_PAD)
    q = tl.load(
        query + at[:, None] * query_token + head[:, None] * query_head + k_at[None, :],
        mask=filled[:, None] & (k_at < KEY)[None, :],
        other=0.0,
    )

    # keys [low, high) are seen by some token of the tile
    high = context + tl.minimum(first + BLOCK_M // GROUP, count)
    first_block = 0
    if WINDOW:
        first_block = tl.maximum(context + first - window + 1, 0) // BLOCK_N
    num_blocks = tl.maximum(tl.cdiv(high, BLOCK_N) - first_block, 0)
    per_split = tl.cdiv(num_blocks, num_splits)
    block_begin = first_block + split * per_split
    block_end = tl.minimum(block_begin + per_split, first_block + num_blocks)

    maximum = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:  # one more key per head, without a value; it counts in one split
        sink = tl.load(sinks + head, mask=filled, other=0.0).to(tl.float32) * LOG2_E
        maximum = tl.where(split == 0, sink, NOTHING)
        total = tl.where(split == 0, 1.0, total)
    weighted = tl.zeros([BLOCK_M, VALUE_PAD], tl.float32)

    for block in range(block_begin, block_end):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        held = n < high
        page = tl.load(table + n // PAGE, mask=held, other=0).to(tl.int64)
        slot = n % PAGE
        k = tl.load(
            keys
            + (page * key_page + slot * key_slot + kv_head * key_head)[None, :]
            + k_at[:, None],
            mask=held[None, :] & (k_at < KEY)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * scaling
        if SOFTCAP:  # softcap * tanh(scores / softcap)
            grown = tl.exp2(scores * (2.0 * LOG2_E / softcap))
            scores = softcap - 2.0 * softcap / (grown + 1.0)
        seen = n[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (position[:, None] - n[None, :] < window)
        scores = tl.where(seen, scores * LOG2_E, NOTHING)
        higher = tl.maximum(maximum, tl.max(scores, 1))
        base = tl.where(higher == NOTHING, 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(maximum - base)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(
            values
            + (page * value_page + slot * value_slot + kv_head * value_head)[:, None]
            + v_at[None, :],
            mask=held[:, None] & (v_at < VALUE)[None, :],
            other=0.0,
        )
        weighted = weighted * shrink[:, None]
        weighted = tl.dot(weights.to(v.dtype), v, weighted, input_precision=PRECISION)
        maximum = higher

    if SPLIT:
        part = (tile * tl.num_programs(1) + kv_head).to(tl.int64) * BLOCK_M + m
        part = part * num_splits + split
        tl.store(maxima + part, maximum, mask=filled)
        tl.store(sums + part, total, mask=filled)
        into = part[:, None] * VALUE + v_at[None, :]
    else:
        weighted = weighted / tl.where(total > 0, total, 1.0)[:, None]
        into = at[:, None] * out_token + head[:, None] * out_head + v_at[None, :]
    tl.store(
        out + into,
        weighted.to(out.dtype.element_ty),
        mask=filled[:, None] & (v_at < VALUE)[None, :],
    )


@triton.jit(
    do_not_specialize=["block_m", "num_splits"],
    do_not_specialize_on_alignment=["begins", "tile_rows", "tile_firsts"],
)
def combine(
    out,  # (tokens, heads, VALUE)
    parts,  # (tiles, kv_heads, block_m, num_splits, VALUE) float32
    maxima,  # (tiles, kv_heads, block_m, num_splits) float32
    sums,  # the same
    begins,
    tile_rows,
    tile_firsts,
    block_m,
    num_splits,
    out_token,
    out_head,
    GROUP: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    m = tl.program_id(2)
    row = tl.load(tile_rows + tile)
    token = tl.load(tile_firsts + tile) + m // GROUP
    begin = tl.load(begins + row)
    if token < tl.load(begins + row + 1) - begin:
        split = tl.arange(0, MAX_SPLITS)
        there = split < num_splits
        part = (tile * tl.num_programs(1) + kv_head).to(tl.int64) * block_m + m
        part = part * num_splits + split
        v_at = tl.arange(0, VALUE_PAD)
        maximum = tl.load(maxima + part, mask=there, other=NOTHING)
        base = tl.max(maximum, 0)
        share = tl.exp2(maximum - tl.where(base == NOTHING, 0.0, base))
        total = tl.sum(tl.load(sums + part, mask=there, other=0.0) * share, 0)
        weighted = tl.load(
            parts + part[:, None] * VALUE + v_at[None, :],
            mask=there[:, None] & (v_at < VALUE)[None, :],
            other=0.0,
        )
        summed = tl.sum(weighted * share[:, None], 0) / tl.where(total > 0, total, 1.0)
        at = (begin + token).to(tl.int64) * out_token + (kv_head * GROUP + m % GROUP) * out_head
        tl.store(out + at + v_at, summed.to(out.dtype.element_ty), mask=v_at < VALUE)
