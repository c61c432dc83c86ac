"""
Tokens per second of the engine against plain transformers, and what a step costs besides the model.

    python bench/engine.py [--model builtin://tiny] [--streams 1,8,32] [--rounds 3] [--json FILE]

Three ways to write `--output` tokens after `--prompt` tokens on `--streams` streams, greedily
and in one process: transformers' `generate` over a static batch (its default attention), the runner
alone (`TorchRunner.step`: one prefill step, then decodes), and the whole engine (the same runner
behind scheduler, planner, detokenising and events, without HTTP). They take turns, `rounds` times,
after one unmeasured round; medians are shown. "outside" is the part of a step that is not the
model: prepare and sample for the runner; plan, emit and account as well for the engine.
"""

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sloserve.model.allocator import malloc_environment

if __name__ == "__main__" and any(k not in os.environ for k in malloc_environment()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **malloc_environment()})

import torch
from transformers import AutoModelForCausalLM

from sloserve.engine.clock import RealClock
from sloserve.engine.events import Chunk, Event, Generate
from sloserve.engine.loop import Engine
from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.hardware import num_cores
from sloserve.model.load import load_model
from sloserve.model.runner import TorchRunner
from sloserve.model.sources import resolve_source
from sloserve.model.tokenizer import HfTokenizer
from sloserve.perf import OnlineCorrection, builtin_profile
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import Scheduler
from sloserve.slo import EngineSpec, ModelSpec, Promise, Stage

Tokens = list[list[int]]
PATIENT = Promise(slo_class="bench", ttft_s=600.0, stages=(Stage("answer", tpot_s=60.0),))


@dataclass(frozen=True, slots=True)
class Run:
    """One way, once: the tokens that came out, and where the time went."""

    tokens: Tokens
    wall_s: float
    step_s: tuple[float, ...] = ()  # decode steps only, whole
    forward_s: tuple[float, ...] = ()  # the model's part of each

    @property
    def tokens_per_s(self) -> float:
        return sum(len(t) for t in self.tokens) / self.wall_s

    @property
    def outside_s(self) -> tuple[float, ...]:
        return tuple(s - f for s, f in zip(self.step_s, self.forward_s, strict=True))


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: medians over the rounds."""

    streams: int
    way: str
    tokens_per_s: float
    against_transformers: float
    step_ms: float | None
    outside_ms: float | None
    outside_share: float | None
    same_tokens: bool


def by_transformers(model: torch.nn.Module, prompts: Tokens, num_output: int) -> Run:
    """transformers' own `generate` over one static batch."""
    ids = torch.tensor(prompts)
    start_s = time.perf_counter()
    out = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=num_output,
        max_new_tokens=num_output,
        eos_token_id=None,
        pad_token_id=0,
    )
    return Run(out[:, ids.shape[1] :].tolist(), time.perf_counter() - start_s)


def by_runner(runner: TorchRunner, prompts: Tokens, num_output: int) -> Run:
    """Steps of the runner alone: everything prefilled at once, then decodes."""
    greedy = SamplingParams(temperature=0.0)
    size = runner.facts.block_size
    num_blocks = -(-(len(prompts[0]) + num_output) // size)
    known = [list(prompt) for prompt in prompts]
    tables = [list(range(i * num_blocks, (i + 1) * num_blocks)) for i in range(len(known))]
    step_s, forward_s = [], []
    start_s = time.perf_counter()
    for number in range(num_output):
        begun_s = time.perf_counter()
        rows = [
            StepRow(
                request_id=i,
                tokens=tokens,
                num_prompt=len(prompts[i]),
                start=len(tokens) - 1 if number else 0,
                count=1 if number else len(tokens),
                block_table=tables[i],
                sample=True,
                sampling=greedy,
            )
            for i, tokens in enumerate(known)
        ]
        for tokens, sampled in zip(known, runner.step(rows), strict=True):
            assert sampled.token_id is not None
            tokens.append(sampled.token_id)
        if number:
            step_s.append(time.perf_counter() - begun_s)
            forward_s.append(runner.last_forward_s)
    wall_s = time.perf_counter() - start_s
    for i in range(len(known)):
        runner.forget(i)
    outputs = [tokens[len(prompts[0]) :] for tokens in known]
    return Run(outputs, wall_s, tuple(step_s), tuple(forward_s))


def by_engine(runner: TorchRunner, tokenizer: HfTokenizer, prompts: Tokens, num_output: int) -> Run:
    """The whole engine in this thread: scheduler, planner, runner, text, events."""
    facts, profile = runner.facts, builtin_profile("tiny-cpu")
    scheduler = Scheduler(
        make_policy("sloserve"),
        profile.step,
        OnlineCorrection(start_margin_s=0.0),
        Limits(block_size=facts.block_size, num_blocks=facts.num_blocks),
        new_law=LengthLaw,
        classes=(),
        max_model_len=facts.max_model_len,
        prefix_caching=False,
    )
    outputs: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}

    def emit(events: list[tuple[str, Event]]) -> None:
        for key, event in events:
            if isinstance(event, Chunk):
                outputs[key] += event.token_ids

    engine = Engine(scheduler, runner, tokenizer, clock=RealClock(), emit=emit)
    sampling = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
    step_s, forward_s = [], []
    start_s = time.perf_counter()
    for key, prompt in zip(outputs, prompts, strict=True):
        engine.add(
            Generate(
                key=key,
                prompt=prompt,
                sampling=sampling,
                promise=PATIENT,
                arrival_s=engine.clock.now_s(),
            )
        )
    while engine.has_work:
        decodes = all(outputs.values())
        begun_s = time.perf_counter()
        ran = engine.turn()
        if ran and decodes:
            step_s.append(time.perf_counter() - begun_s)
            forward_s.append(runner.last_forward_s)
    wall_s = time.perf_counter() - start_s
    return Run(list(outputs.values()), wall_s, tuple(step_s), tuple(forward_s))


def summarise(streams: int, runs: dict[str, list[Run]]) -> list[Line]:
    """The table's rows for one number of streams."""
    expected = runs["transformers"][0].tokens
    base = statistics.median(run.tokens_per_s for run in runs["transformers"])
    lines = []
    for way, taken in runs.items():
        rate = statistics.median(run.tokens_per_s for run in taken)
        step_s = [s for run in taken for s in run.step_s]
        outside_s = [s for run in taken for s in run.outside_s]
        lines.append(
            Line(
                streams=streams,
                way=way,
                tokens_per_s=rate,
                against_transformers=rate / base,
                step_ms=1e3 * statistics.median(step_s) if step_s else None,
                outside_ms=1e3 * statistics.median(outside_s) if outside_s else None,
                outside_share=sum(outside_s) / sum(step_s) if step_s else None,
                same_tokens=all(run.tokens == expected for run in taken),
            )
        )
    return lines


def table(lines: Sequence[Line]) -> str:
    """The lines as text."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = f"{'streams':>7}  {'way':<12} {'tokens/s':>9} {'times':>6} {'step ms':>8}"
    rows = [f"{head} {'outside ms':>10} {'share':>6}  same tokens"]
    for line in lines:
        rows.append(
            f"{line.streams:>7}  {line.way:<12} {line.tokens_per_s:>9.0f} "
            f"{line.against_transformers:>6.2f} {number(line.step_ms, '.2f'):>8} "
            f"{number(line.outside_ms, '.3f'):>10} {number(line.outside_share, '.1%'):>6}  "
            f"{'yes' if line.same_tokens else 'no'}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--model", default="builtin://tiny", help="a model source")
    parser.add_argument("--dtype", default="float32", help="for all ways alike")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--output", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    path = resolve_source(args.model)
    runner, tokenizer = load_model(
        path,
        model=ModelSpec(source=args.model, served_name="bench"),
        engine=EngineSpec(dtype=args.dtype, threads=args.threads),
    )
    dtype: torch.dtype = getattr(torch, runner.facts.dtype)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    gc.collect()
    gc.freeze()  # this and the thresholds as a replica has them
    gc.set_threshold(20_000, 20, 50)
    source = random.Random(0)
    lines: list[Line] = []
    for streams in (int(text) for text in args.streams.split(",")):
        prompts = [
            [source.randrange(runner.facts.vocab_size) for _ in range(args.prompt)]
            for _ in range(streams)
        ]
        ways: dict[str, Callable[[], Run]] = {
            "transformers": lambda p=prompts: by_transformers(plain, p, args.output),  # type: ignore[misc]
            "runner": lambda p=prompts: by_runner(runner, p, args.output),  # type: ignore[misc]
            "engine": lambda p=prompts: by_engine(runner, tokenizer, p, args.output),  # type: ignore[misc]
        }
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        for number in range(args.rounds + 1):
            for way, go in ways.items():
                run = go()
                if number:  # the first round warms up
                    runs[way].append(run)
        lines += summarise(streams, runs)
    print(f"{args.model}, {runner.facts.dtype}, {runner.facts.hardware}, torch {torch.__version__}")
    print(table(lines))
    if args.json:
        facts = {
            "model": args.model,
            "dtype": runner.facts.dtype,
            "hardware": runner.facts.hardware,
            "prompt_tokens": args.prompt,
            "output_tokens": args.output,
            "rounds": args.rounds,
            "torch": torch.__version__,
        }
        args.json.write_text(json.dumps({**facts, "lines": [asdict(x) for x in lines]}, indent=2))


if __name__ == "__main__":
    main()
