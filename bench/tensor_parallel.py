"""
One model over two ranks against the same model whole, on this CPU.

    python -m bench.tensor_parallel [--rounds 15] [--round-s 0.2]

Three ways to compute a step take turns, round by round: whole with one thread, whole with two, and
two ranks with one thread each. The small model that ships, and random weights of a larger Llama
that is bound by reading them; decodes of one and of eight requests, and a chunk of a prompt. Ratios
are medians of paired ones, and beside them those of each way's best round (other work on the
machine takes a core from whoever needs two). CPU seconds are those of all processes of a way.
Bytes: what rank 0 tells rank 1 of a step over their socket, and what it puts into sums and joins,
counted where they are asked for (over two ranks each sends about as much).
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sloserve.model.allocator import malloc_environment

if __name__ == "__main__" and any(k not in os.environ for k in malloc_environment()):
    words = ["-m", "bench.tensor_parallel", *sys.argv[1:]]
    os.execve(sys.executable, [sys.executable, *words], {**os.environ, **malloc_environment()})

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import lay_out
from sloserve.model.load import load_runner
from sloserve.model.parallel.orders import Step, as_bytes
from sloserve.model.parallel.seat import Seat
from sloserve.model.parallel.wire import packed
from sloserve.model.runner import TorchRunner
from sloserve.model.sources import resolve_source
from sloserve.slo.service import EngineSpec, ModelSpec
from sloserve.slo.sources import parse_source

CONTEXT = 256
SHAPES = {"1 decode": (1, 1), "8 decodes": (8, 1), "chunk of 128": (1, 128)}
"""Rows, and tokens of each."""
COLUMNS = (
    "model", "step", "way", "ms", "tokens/s", "quicker", "best rounds", "CPU ms", "bytes a step"
)  # fmt: skip
WARM_STEPS = 3
LARGER = LlamaConfig(
    vocab_size=8192,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    dtype=torch.bfloat16,
)


@dataclass(slots=True)
class Way:
    """A runner with so many threads in this process, and what its rounds took per step."""

    name: str
    runner: TorchRunner
    threads: int
    step_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        return [os.getpid(), *(self.runner.ranks.pids if self.runner.ranks is not None else ())]

    def take_turn(self, rows: list[StepRow], *, for_s: float) -> None:
        """Steps for so long; their mean."""
        torch.set_num_threads(self.threads)
        for _ in range(WARM_STEPS):
            self.runner.step(rows)
        before_s, start_s, num_steps = self._spent_s(), time.perf_counter(), 0
        while num_steps < 2 or time.perf_counter() - start_s < for_s:
            self.runner.step(rows)
            num_steps += 1
        self.step_s.append((time.perf_counter() - start_s) / num_steps)
        self.cpu_s.append((self._spent_s() - before_s) / num_steps)

    def _spent_s(self) -> float:
        """CPU seconds of all its processes, by Linux's clock of a process."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids)


@dataclass(slots=True)
class Counted:
    """Bytes that go through a seat's sums and joins, while it is in force."""

    num_bytes: int = 0

    def count(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(seat: Seat, part: Tensor, **given: int) -> Tensor:
            self.num_bytes += part.nbytes
            return plain(seat, part, **given)

        return counted


def exchanged_bytes(runner: TorchRunner, rows: list[StepRow]) -> int:
    """What a step puts into sums and joins at rank 0."""
    counted, add, join = Counted(), Seat.add, Seat.join_last
    try:
        Seat.add = counted.count(add)  # type: ignore[method-assign]
        Seat.join_last = counted.count(join)  # type: ignore[method-assign]
        runner.step(rows)
    finally:
        Seat.add, Seat.join_last = add, join  # type: ignore[method-assign]
    return counted.num_bytes


def step_rows(runner: TorchRunner, num_rows: int, count: int) -> list[StepRow]:
    """Rows of `count` tokens after CONTEXT others, over pages of their own."""
    facts = runner.facts
    num_pages = -(-(CONTEXT + count) // facts.block_size)
    sampling = SamplingParams(temperature=0.0)
    return [
        StepRow(
            row,
            [(7 * i + row) % facts.vocab_size for i in range(CONTEXT + count)],
            CONTEXT,
            CONTEXT,
            count,
            range(row * num_pages, (row + 1) * num_pages),
            True,
            sampling,
        )
        for row in range(num_rows)
    ]


def ways_of(folder: Path) -> list[Way]:
    """The three ways to compute the model of a folder. The whole one is loaded once."""
    model = ModelSpec(source=f"file://{folder}", served_name="m", max_model_len=2048)
    pair = EngineSpec(threads=2, dtype="bfloat16", kv_bytes=64 << 20, tensor_parallel_size=2)
    whole_spec = EngineSpec(threads=2, dtype="bfloat16", kv_bytes=64 << 20)
    whole = load_runner(folder, model=model, engine=whole_spec)
    return [
        Way("1 rank, 1 thread", whole, 1),
        Way("1 rank, 2 threads", whole, 2),
        Way("2 ranks, 1 thread each", load_runner(folder, model=model, engine=pair), 1),
    ]


def measure(name: str, folder: Path, *, rounds: int, round_s: float) -> None:
    """Print a row of the table per shape and way."""
    ways = ways_of(folder)
    for what, (num_rows, count) in SHAPES.items():
        rows = step_rows(ways[0].runner, num_rows, count)
        for way in ways:
            way.step_s.clear()
            way.cpu_s.clear()
        for number in range(rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                way.take_turn(rows, for_s=round_s)
        layout = lay_out(rows, block_size=ways[0].runner.facts.block_size)
        told = len(as_bytes(Step(packed(layout))))
        summed = exchanged_bytes(ways[-1].runner, rows)
        for way in ways:
            step_s = statistics.median(way.step_s)
            pairs = zip(ways[0].step_s, way.step_s, strict=True)
            ratio = statistics.median(alone / own for alone, own in pairs)
            cells = [
                name,
                what,
                way.name,
                f"{1e3 * step_s:.2f}",
                f"{num_rows * count / step_s:.0f}",
                f"{ratio:.2f}x",
                f"{min(ways[0].step_s) / min(way.step_s):.2f}x",
                f"{1e3 * statistics.median(way.cpu_s):.2f}",
                f"{told:,} + {summed:,}" if way.runner.ranks is not None else "-",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
    ways[-1].runner.close()
    ways[0].runner.close()


def busy_s() -> float:
    """CPU seconds that all work of this machine has used since it started (Linux)."""
    words = Path("/proc/stat").read_text("utf-8").split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, words)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--round-s", type=float, default=0.2, help="seconds of a way's turn")
    args = parser.parse_args()
    start_s, before_s, own_before_s = time.perf_counter(), busy_s(), sum(os.times()[:4])
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    tiny = resolve_source(parse_source("builtin://tiny", field="model.source"))
    measure("tiny", tiny, rounds=args.rounds, round_s=args.round_s)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(LARGER, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        network.save_pretrained(folder)
        del network
        measure("larger", Path(folder), rounds=args.rounds, round_s=args.round_s)
    took_s, all_s = time.perf_counter() - start_s, busy_s() - before_s
    own_s = sum(os.times()[:4]) - own_before_s  # ours, and the ranks', which have ended
    print(
        f"\nOther work used {all_s - own_s:.0f} of {took_s * (os.cpu_count() or 1):.0f} CPU seconds"
        f" of this machine meanwhile; load {os.getloadavg()[0]:.1f} at the end."
    )


if __name__ == "__main__":
    main()
