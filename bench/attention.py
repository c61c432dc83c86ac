"""
One layer's attention: our compiled kernel against torch's, over the same paged cache.

    python bench/attention.py [--threads 2] [--rounds 30] [--heads 8] [--kv-heads 4] [--size 64]

Decodes at several widths and contexts, and prefill chunks, in float32 and bfloat16. The two paths
take turns call by call; the ratio is the median of paired ratios, torch / compiled. A call writes
the step's keys and values and attends; the way into the path is not counted.
"""

import argparse
import os
import statistics
import sys
import time

from sloserve.model.allocator import malloc_environment

if __name__ == "__main__" and any(k not in os.environ for k in malloc_environment()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **malloc_environment()})

import torch

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import Batch, build_batch
from sloserve.model.choice import choose_path
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.path import AttentionPath
from sloserve.model.terms import Terms

BLOCK_SIZE = 16
CPU = torch.device("cpu")
DECODES = [((context, 1),) * width for width in (1, 8, 32) for context in (128, 1024, 4096)]
CHUNKS = [((context, count),) for count in (4, 16, 64, 256, 1024) for context in (0, 1024)]
UNEVEN = [tuple((64 * i, 1) for i in range(1, 33))]


def step_rows(shape: tuple[tuple[int, int], ...]) -> list[StepRow]:
    """Rows of (context, count), each with pages of its own, scattered."""
    rows: list[StepRow] = []
    at = 0
    for context, count in shape:
        num_pages = -(-(context + count) // BLOCK_SIZE)
        table = [at + (7 * i) % num_pages if num_pages % 7 else at + i for i in range(num_pages)]
        at += num_pages
        tokens = range(context + count)
        rows.append(
            StepRow(len(rows), tokens, len(tokens), context, count, table, True, SamplingParams())
        )
    return rows


def call_s(
    path: AttentionPath, batch: Batch, cache: KvCache, tensors: tuple[torch.Tensor, ...]
) -> float:
    """Seconds of one call."""
    query, key, value = tensors
    terms = Terms(scaling=query.shape[2] ** -0.5)
    start_s = time.perf_counter()
    path.attend(0, query, key, value, batch=batch, cache=cache, terms=terms)
    return time.perf_counter() - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layer = LayerShape(args.kv_heads, args.size, args.size)
    print(f"{'rows':>28} {'dtype':>9} {'torch ms':>9} {'compiled':>9} {'ratio':>6}")
    for shape in [*DECODES, *UNEVEN, *CHUNKS]:
        rows = step_rows(shape)
        num_blocks = sum(len(row.block_table) for row in rows)
        for dtype in (torch.float32, torch.bfloat16):
            torch_path, ours = (
                choose_path(name, device=CPU, dtype=dtype, layers=[layer])
                for name in ("torch", "compiled")
            )
            cache = KvCache(
                [layer],
                num_blocks=num_blocks,
                block_size=BLOCK_SIZE,
                dtype=dtype,
                device=CPU,
                path=ours,
            )
            for part in cache.layers[0]:
                part.normal_()
            batch = build_batch(rows, block_size=BLOCK_SIZE, device=CPU)
            num = batch.input_ids.shape[1]
            tensors = tuple(
                torch.randn(num, heads, args.size).to(dtype).transpose(0, 1)
                for heads in (args.heads, args.kv_heads, args.kv_heads)
            )
            pairs = []
            with torch.inference_mode():
                for number in range(args.rounds + 3):
                    pair = [call_s(path, batch, cache, tensors) for path in (torch_path, ours)]
                    if number >= 3:
                        pairs.append(pair)
            ratio = statistics.median(a / b for a, b in pairs)
            slow, fast = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
            told = f"{len(rows)} x {rows[-1].count} after {rows[-1].start}"
            kind = str(dtype).removeprefix("torch.")
            print(f"{told:>28} {kind:>9} {slow:>9.3f} {fast:>9.3f} {ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
