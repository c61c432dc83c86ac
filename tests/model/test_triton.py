"""Our Triton kernel, run by Triton's interpreter: against torch's kernels over the same pages."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import Batch, build_batch
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.path import AttentionPath
from sloserve.model.terms import Terms
from sloserve.model.triton_attention import TritonPath
from sloserve.model.triton_tiles import MAX_SPLITS, MIN_SPLIT_KEYS, launches, num_splits, tiling

CPU = torch.device("cpu")
RAGGED = [(0, 1), (15, 1), (16, 1), (63, 1), (200, 1), (0, 5), (0, 40), (31, 33), (64, 16), (90, 3)]
"""Rows as (context, tokens): empty contexts, page borders (16), key blocks (64), drafts, chunks."""
LONG = [(2100, 1), (511, 1), (3, 1), (700, 4), (0, 2)]

BuildPath = Callable[..., TritonPath]


def rows_of(ragged: Sequence[tuple[int, int]], *, block_size: int) -> list[StepRow]:
    """Rows on pages from a shuffled pool."""
    needed = [-(-(context + count) // block_size) for context, count in ragged]
    pool = list(range(sum(needed)))
    random.Random(3).shuffle(pool)
    return [
        StepRow(
            request_id=i,
            tokens=range(context + count),
            num_prompt=context + count,
            start=context,
            count=count,
            block_table=[pool.pop() for _ in range(num_pages)],
            sample=False,
            sampling=SamplingParams(),
        )
        for i, ((context, count), num_pages) in enumerate(zip(ragged, needed, strict=True))
    ]


class World:
    """A layer's pages full of what came before, one step's tokens, and any path to attend them."""

    def __init__(
        self,
        ragged: Sequence[tuple[int, int]],
        *,
        heads: int,
        shape: LayerShape,
        dtype: torch.dtype = torch.float32,
        block_size: int = 16,
    ) -> None:
        torch.manual_seed(5)
        self.rows = rows_of(ragged, block_size=block_size)
        self.num_blocks = sum(len(row.block_table) for row in self.rows) + 1
        self.block_size, self.shape, self.dtype = block_size, shape, dtype
        self.batch = build_batch(self.rows, block_size=block_size, device=CPU)
        num = self.batch.input_ids.shape[1]
        # strided as models give them: heads behind tokens
        self.query = torch.randn(num, heads, shape.key_size).to(dtype).transpose(0, 1)
        kv = shape.num_kv_heads
        self.key = torch.randn(num, kv, shape.key_size).to(dtype).transpose(0, 1)
        self.value = torch.randn(num, kv, shape.value_size).to(dtype).transpose(0, 1)
        self.pages = [
            torch.randn(self.num_blocks, block_size, kv, size).to(dtype)
            for size in (shape.key_size, shape.value_size)
        ]

    def attend(self, path: AttentionPath, terms: Terms, batch: Batch | None = None) -> Tensor:
        """(P, H, Dv) by that path, over a cache of its own with equal content."""
        cache = KvCache(
            [self.shape],
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            dtype=self.dtype,
            device=CPU,
            path=path,
        )
        for mine, filled in zip(cache.layers[0], self.pages, strict=True):
            mine.copy_(filled)
        batch = batch or build_batch(self.rows, block_size=self.block_size, device=CPU)
        with torch.inference_mode():
            return path.attend(
                0, self.query, self.key, self.value, batch=batch, cache=cache, terms=terms
            )


@pytest.fixture
def a_path(interpreted_kernels: object) -> BuildPath:
    """The path over interpreted kernels, as a GPU of so many multiprocessors would be used."""

    def build(num_processors: int = 1) -> TritonPath:
        return TritonPath(interpreted_kernels, num_processors=num_processors)  # type: ignore[arg-type]

    return build


CASES = [
    # heads, kv heads, key size, value size, window, softcap, sinks
    (4, 4, 32, 32, None, None, False),
    (4, 2, 64, 64, None, None, False),
    (8, 1, 128, 128, None, None, False),
    (6, 2, 80, 80, None, None, False),
    (2, 1, 256, 256, None, None, False),
    (5, 1, 24, 16, None, None, False),
    (18, 1, 32, 32, None, None, False),
    (4, 2, 32, 32, 1, None, False),
    (4, 2, 32, 32, 20, None, False),
    (4, 2, 32, 32, 64, 1.5, False),
    (4, 2, 32, 32, None, 30.0, False),
    (4, 2, 32, 32, None, None, True),
    (6, 2, 48, 48, 17, 2.0, True),
]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_size", "value_size", "window", "softcap", "sinks"), CASES
)
def test_ragged_steps_attend_as_torchs_kernels_do(
    heads: int,
    kv_heads: int,
    key_size: int,
    value_size: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    a_path: BuildPath,
) -> None:
    world = World(RAGGED, heads=heads, shape=LayerShape(kv_heads, key_size, value_size))
    terms = Terms(key_size**-0.5, window, softcap, torch.randn(heads) if sinks else None)
    out = world.attend(a_path(), terms)
    assert torch.allclose(out, world.attend(Gathered(), terms), atol=1e-5)
    assert not out[world.batch.slots.shape[0] :].any()  # padding


@pytest.mark.parametrize(("window", "softcap", "sinks"), [
    (None, None, False), (300, None, True), (None, 3.0, True), (40, None, False),
])  # fmt: skip
def test_long_contexts_are_split_and_put_together_again(
    window: int | None, softcap: float | None, sinks: bool, a_path: BuildPath
) -> None:
    world = World(LONG, heads=4, shape=LayerShape(2, 32, 32))
    terms = Terms(0.2, window, softcap, torch.randn(4) if sinks else None)
    assert num_splits(num_programs=6, num_keys=2100, num_processors=132) == 8
    out = world.attend(a_path(num_processors=132), terms)
    assert torch.allclose(out, world.attend(Gathered(), terms), atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_sixteen_bits_stay_as_close_as_they_can(
    dtype: torch.dtype, atol: float, a_path: BuildPath
) -> None:
    world = World(RAGGED[:6] + LONG[:1], heads=4, shape=LayerShape(2, 64, 64), dtype=dtype)
    terms = Terms(0.125)
    exact = World(RAGGED[:6] + LONG[:1], heads=4, shape=LayerShape(2, 64, 64))
    expected = exact.attend(Gathered(), terms)
    for processors in (1, 132):
        out = world.attend(a_path(processors), terms)
        assert out.dtype is dtype
        assert (out.float() - expected).abs().max() < 2 * atol
        assert (out.float() - world.attend(Gathered(), terms).float()).abs().max() < 2 * atol


@pytest.mark.parametrize("block_size", [4, 256])
def test_pages_may_have_any_size(block_size: int, a_path: BuildPath) -> None:
    world = World(
        [(300, 1), (255, 1), (0, 20), (250, 10)],
        heads=4,
        shape=LayerShape(2, 32, 32),
        block_size=block_size,
    )
    terms = Terms(0.2, window=100)
    assert torch.allclose(world.attend(a_path(), terms), world.attend(Gathered(), terms), atol=1e-5)


def test_a_row_that_is_padding_comes_out_as_zero_and_disturbs_nobody(a_path: BuildPath) -> None:
    world = World([(600, 1), (20, 1), (7, 1)], heads=4, shape=LayerShape(2, 32, 32))
    terms = Terms(0.2)
    expected = world.attend(Gathered(), terms)
    batch = build_batch(world.rows, block_size=16, device=CPU)
    batch.tables.contexts[1] = -1
    for processors in (1, 132):
        out = world.attend(a_path(processors), terms, batch)
        assert not out[1].any()
        assert torch.allclose(out[[0, 2]], expected[[0, 2]], atol=1e-5)
        batch.kept.clear()


def test_a_launch_follows_tables_that_change_in_place(a_path: BuildPath) -> None:
    """What a CUDA graph does: the host's part is fixed, lengths and pages are new."""
    before = World([(900, 1), (800, 1)], heads=4, shape=LayerShape(2, 32, 32))
    path, terms = a_path(num_processors=132), Terms(0.2)
    kept = build_batch(before.rows, block_size=16, device=CPU)
    kept.tables.page_begins.copy_(torch.tensor([0, 60, 120]))
    static = Batch(
        **{
            **{name: getattr(kept, name) for name in Batch.__slots__},
            "contexts": [900, 900],  # upper bounds
            "slots": kept.slots.clone(),
            "tables": type(kept.tables)(
                kept.tables.begins.clone(),
                kept.tables.contexts.clone(),
                torch.tensor([0, 60, 120]),
                torch.zeros(120, dtype=torch.int64),
            ),
        }
    )
    for contexts in ([900, 800], [17, 899], [0, 31], [256, 255]):
        now = World([(c, 1) for c in sorted(contexts, reverse=True)], heads=4,
                    shape=LayerShape(2, 32, 32))  # fmt: skip
        static.slots.copy_(now.batch.slots)
        static.tables.contexts.copy_(now.batch.tables.contexts)
        for i, row in enumerate(now.rows):
            table = torch.tensor(row.block_table)
            static.tables.pages[60 * i : 60 * i + len(table)] = table
        out = now.attend(path, terms, static)
        assert torch.allclose(out, now.attend(Gathered(), terms), atol=1e-5)


def test_decodes_drafts_and_chunks_are_launched_apart() -> None:
    ragged = [(5, 1), (40, 30), (9, 4), (7, 1), (0, 17)]
    batch = build_batch(rows_of(ragged, block_size=16), block_size=16, device=CPU)
    found = launches(batch)
    assert [launch.counts for launch in found] == [(1, 1), (30, 17), (4,)]
    assert [launch.longest for launch in found] == [8, 70, 13]
    tiles = found[1].tiles(16, CPU)
    assert tiles.rows.tolist() == [2, 2, 4, 4]
    assert tiles.firsts.tolist() == [0, 16, 0, 16]
    assert found[0].tiles(4, CPU).rows.tolist() == [0, 1]


def test_splits_keep_a_gpu_busy_and_are_never_short() -> None:
    for programs in (1, 8, 64, 263, 264, 5000):
        for keys in (1, 255, 256, 600, 4096, 200_000):
            splits = num_splits(num_programs=programs, num_keys=keys, num_processors=132)
            assert splits == 1 << (splits.bit_length() - 1) <= MAX_SPLITS
            assert splits == 1 or keys // splits >= MIN_SPLIT_KEYS
            assert splits == 1 or programs * splits < 4 * 132
    assert num_splits(num_programs=8, num_keys=200_000, num_processors=132) == 32
    assert num_splits(num_programs=264, num_keys=200_000, num_processors=132) == 1


def test_tiles_hold_a_whole_group_and_grow_with_the_chunk() -> None:
    for group in (1, 3, 4, 8, 48, 71):
        for size in (32, 64, 128, 256):
            for itemsize in (2, 4):
                decode, chunk = (
                    tiling(group=group, max_count=n, head_size=size, itemsize=itemsize)
                    for n in (1, 512)
                )
                assert group <= decode.block_m <= max(16, 2 * group)
                assert decode.block_m <= chunk.block_m <= max(128, 2 * group)
