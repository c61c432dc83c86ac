"""
Lean layers against transformers' own, both over our attention kernel: time of the forward pass.

    python -m bench.lean [--sizes tiny,5m,50m] [--dtypes float32,bfloat16] [--rows 1,8,32,256]
                         [--threads 2] [--pairs 40]

One process holds both; decodes of 96 tokens of context go through them in turns of 8 steps, who is
first changes. The ratio is that of the times of a pair of turns, transformers' / lean: its median
and quartiles. 256 rows are one prefill of 256 tokens. `5m` and `50m` are those of bench.peers.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from sloserve.model.allocator import malloc_environment

if __name__ == "__main__" and any(k not in os.environ for k in malloc_environment()):
    os.execve(
        sys.executable,
        [sys.executable, "-m", "bench.lean", *sys.argv[1:]],
        {**os.environ, **malloc_environment()},
    )

import torch
from bench.peers import make_model
from transformers import AutoModelForCausalLM

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.load import runner_over
from sloserve.model.runner import TorchRunner
from sloserve.model.sources import resolve_source
from sloserve.slo import EngineSpec, ModelSpec

CONTEXT = 96
PREFILL = 256
STEPS = 8


def load(folder: Path, dtype: str, threads: int, *, lean: bool) -> TorchRunner:
    """A runner over the checkpoint, with or without lean layers."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return runner_over(
        network,
        model=ModelSpec(source=f"file://{folder}", served_name="bench", max_model_len=1024),
        engine=EngineSpec(dtype=dtype, threads=threads, kv_bytes=1 << 28, attention="compiled"),
        lean=lean,
    )


def rows_of(num: int, block_size: int) -> list[StepRow]:
    """So many decodes; PREFILL: one prompt instead."""
    greedy = SamplingParams(temperature=0.0)
    count, start = (PREFILL, 0) if num == PREFILL else (1, CONTEXT)
    num_blocks = -(-(start + count) // block_size)
    return [
        StepRow(
            request_id=i,
            tokens=list(range(300, 300 + start + count)),
            num_prompt=start + count,
            start=start,
            count=count,
            block_table=list(range(i * num_blocks, (i + 1) * num_blocks)),
            sample=True,
            sampling=greedy,
        )
        for i in range(1 if num == PREFILL else num)
    ]


def turn_s(runner: TorchRunner, rows: list[StepRow]) -> float:
    """Seconds in the model, over some steps."""
    total_s = 0.0
    for _ in range(STEPS):
        runner.step(rows)
        total_s += runner.last_forward_s
    return total_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--sizes", default="tiny,5m,50m")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rows", default="1,8,32,256")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| model, dtype | rows | transformers' layers, ms | lean, ms | ratio (quartiles) |")
    print("| --- | --- | --- | --- | --- |")
    for size in args.sizes.split(","):
        with tempfile.TemporaryDirectory() as made:
            folder = resolve_source("builtin://tiny") if size == "tiny" else Path(made) / size
            if size != "tiny":
                make_model(folder, size)
            for dtype in args.dtypes.split(","):
                plain, lean = (load(folder, dtype, args.threads, lean=on) for on in (False, True))
                for num in map(int, args.rows.split(",")):
                    rows = rows_of(num, plain.cache.block_size)
                    turns: list[tuple[float, float]] = []
                    for number in range(args.pairs + 2):  # the first two are to warm up
                        if number % 2:
                            first = turn_s(plain, rows)
                            turns.append((first, turn_s(lean, rows)))
                        else:
                            first = turn_s(lean, rows)
                            turns.append((turn_s(plain, rows), first))
                    del turns[:2]
                    low, middle, high = statistics.quantiles((a / b for a, b in turns), n=4)
                    times = [statistics.median(t) * 1e3 / STEPS for t in zip(*turns, strict=True)]
                    print(
                        f"| {size}, {dtype} | {num} | {times[0]:.2f} | {times[1]:.2f} |"
                        f" {middle:.2f} ({low:.2f} to {high:.2f}) |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
