"""
What adapters cost: steps of a model with rows of none, one and four of them.

    python -m bench.lora [--model SOURCE] [--rank 16] [--rounds 60] [--dtype float32]

Random adapters over all projections of every layer. Steps of decodes (1, 8, 32 rows of 128 tokens)
and of a prompt (256 tokens, and the same cut into four rows) take turns: the model loaded without
adapters, then with four loaded and asked for by nobody, by all rows alike, by half of them, and
each by a quarter. Times are of the processor, on one thread: other processes hardly matter. Ratios
are medians over the rounds, against the model without adapters in the same round.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.checkpoint import read_weights
from sloserve.model.load import load_runner
from sloserve.model.lora.weights import linear_sizes
from sloserve.model.runner import TorchRunner
from sloserve.model.sources import resolve_source
from sloserve.slo.service import EngineSpec, ModelSpec

NAMES = ("a", "b", "c", "d")
CONTEXT = 128
WAYS: dict[str, tuple[str, ...]] = {  # by row, over and over
    "loaded, asked for by nobody": ("",),
    "all rows of one": ("a",),
    "half the rows of one": ("a", ""),
    "four, a quarter each": NAMES,
}


def random_adapter(model: torch.nn.Module, folder: Path, *, rank: int) -> Path:
    """Over every linear layer but the output, in PEFT's format."""
    factors = {}
    for path, module in model.named_modules():
        sizes = linear_sizes(module)
        if sizes is not None and not path.endswith("lm_head"):
            key = f"base_model.model.{path}.lora_"
            factors[f"{key}A.weight"] = torch.randn(rank, sizes[0]) * 0.02
            factors[f"{key}B.weight"] = torch.randn(sizes[1], rank) * 0.02
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def step_rows(
    runner: TorchRunner, num_rows: int, count: int, adapters: Sequence[str]
) -> list[StepRow]:
    """Rows that compute `count` tokens each, decodes after a context."""
    block_size = runner.facts.block_size
    start = CONTEXT if count == 1 else 0
    pages = -(-(start + count) // block_size)
    return [
        StepRow(
            request_id=number,
            tokens=[(7 * i + number) % runner.facts.vocab_size for i in range(start + count)],
            num_prompt=start + count,
            start=start,
            count=count,
            block_table=range(number * pages, (number + 1) * pages),
            sample=True,
            sampling=SamplingParams(temperature=0.0),
            adapter=adapters[number % len(adapters)],
        )
        for number in range(num_rows)
    ]


def cpu_s(runner: TorchRunner, rows: Sequence[StepRow], *, times: int) -> float:
    """Processor seconds of a step."""
    start_s = time.process_time()
    for _ in range(times):
        runner.step(rows)
    return (time.process_time() - start_s) / times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin://tiny")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    path = resolve_source(args.model)
    model = ModelSpec(source=args.model, served_name="bench", max_model_len=1024)
    engine = EngineSpec(threads=1, dtype=args.dtype, kv_bytes=2**28)
    plain = load_runner(path, model=model, engine=engine)
    with tempfile.TemporaryDirectory() as scratch:
        network = read_weights(path, dtype=torch.float32)
        folders = {n: random_adapter(network, Path(scratch) / n, rank=args.rank) for n in NAMES}
        del network
        adapted = load_runner(path, model=model, engine=engine, adapters=folders)
    gc.collect()
    gc.freeze()
    print(f"{adapted.facts.hardware}, {adapted.facts.dtype}, rank {args.rank}")
    print(f"{'step':<22}{'without':>10}" + "".join(f"{way:>30}" for way in WAYS))
    for num_rows, count in ((1, 1), (8, 1), (32, 1), (1, 256), (4, 64)):
        base = step_rows(plain, num_rows, count, ("",))
        ways = {way: step_rows(adapted, num_rows, count, names) for way, names in WAYS.items()}
        alone: list[float] = []
        ratios: dict[str, list[float]] = {way: [] for way in WAYS}
        times = 4 if count == 1 else 1
        for number in range(args.rounds + 3):
            without = cpu_s(plain, base, times=times)
            taken = {way: cpu_s(adapted, rows, times=times) for way, rows in ways.items()}
            if number >= 3:  # the first ones warm up
                alone.append(without)
                for way, own in taken.items():
                    ratios[way].append(own / without)
        name = f"{num_rows} x {count} token{'s' if count > 1 else ''}"
        cells = "".join(f"{statistics.median(ratios[way]):>30.3f}" for way in WAYS)
        print(f"{name:<22}{statistics.median(alone) * 1e3:>7.2f} ms{cells}", flush=True)
    plain.close()
    adapted.close()


if __name__ == "__main__":
    main()
