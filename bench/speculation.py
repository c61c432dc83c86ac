"""
Speculation off, fixed and by need: tokens per second of the whole engine, side by side.

    python bench/speculation.py [--widths 1,8,32] [--rounds 5] [--output 96] [--answers 1]
                                [--ways off,fixed,need] [--drafter ngram] [--threads N]
                                [--dtype float32] [--cpu-time] [--json FILE]

`--widths` streams, each given a prompt of one kind: copying (a passage said three times, and its
beginning), prose (Python's documentation) or code (its library), at temperature 0 and 0.7. The same
prompts and seeds go through one engine (`TorchRunner` behind scheduler, planner, detokenising;
without HTTP) without drafts, with 4 drafts for everyone, and with drafts by need. The ways take
turns in every round, and each keeps what it learned of drafts in the rounds before, the first of
which is not counted; a ratio is the median of those within a round, shown with their quartiles
(with 25 rounds the median is good to a fifth of what lies between them). Step times are measured
first, as a replica does.

With `--answers 4` every stream gives four answers, one after the other: whoever ends makes room for
the next, so that the width stays what it is. With one answer a stream, those whose drafts are right
end first and leave the others alone in narrower steps; the last of them is what is timed.

With `--cpu-time` all of it, the engine's clock and the step times included, goes by the processor
time of this process, with one compute thread: what others do on the machine then matters little.
"""

import argparse
import gc
import inspect
import json
import os
import pydoc_data.topics
import random
import statistics
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sloserve.model.allocator import malloc_environment

if __name__ == "__main__" and any(k not in os.environ for k in malloc_environment()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **malloc_environment()})

from sloserve.engine.clock import Clock, RealClock
from sloserve.engine.events import Chunk, Event, Generate
from sloserve.engine.loop import Emit, Engine
from sloserve.engine.ngram import NgramDrafter
from sloserve.engine.runner import Runner
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.tokenizer import Tokenizer
from sloserve.model.hardware import num_cores
from sloserve.model.load import load_model
from sloserve.model.profile import measure
from sloserve.model.runner import TorchRunner
from sloserve.model.sources import resolve_source
from sloserve.model.tokenizer import HfTokenizer
from sloserve.perf import OnlineCorrection, StepModel, load_profile
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import RunnerDrafts, Scheduler, Speculating
from sloserve.slo import EngineSpec, ModelSpec, Promise, Stage

WAYS = ("off", "fixed", "need")
FIXED = 4
PATIENT = Promise(slo_class="bench", ttft_s=600.0, stages=(Stage("answer", tpot_s=60.0),))
KINDS = ("copying", "prose", "code")


class CpuClock:
    """Processor time of this process; nobody sleeps by it."""

    def now_s(self) -> float:
        return time.process_time()

    def sleep_until(self, at_s: float) -> None:
        raise AssertionError("processor time does not pass asleep")


@dataclass(frozen=True, slots=True)
class Run:
    """One way, once."""

    time_s: float
    num_steps: int
    num_drafts: int
    num_accepted: int
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    kind: str
    temperature: float
    width: int
    way: str
    ratio: float  # of tokens per second, against `off` in the same round: the median
    lower: float  # quartiles
    upper: float
    tokens_per_s: float
    tokens_per_step: float  # and row
    acceptance: float | None
    same_text: bool


def texts(kind: str, num: int, tokenizer: HfTokenizer) -> list[list[int]]:
    """`num` prompts of 64 to 160 tokens."""
    dice = random.Random(f"{kind} {num}")
    if kind == "code":
        source = "".join(inspect.getsource(m) for m in (textwrap, random, json.decoder))
    else:
        source = "\n".join(str(t) for t in pydoc_data.topics.topics.values())
    ids = tokenizer.encode(source, add_special=False)
    prompts = []
    for _ in range(num):
        start = dice.randrange(len(ids) - 200)
        if kind == "copying":
            passage = ids[start : start + 40]
            prompts.append(passage * 3 + passage[:8])
        else:
            prompts.append(ids[start : start + 96])
    return prompts


def speculating(runner: TorchRunner, way: str) -> Speculating | None:
    """Where drafts come from, and how many of them, by way."""
    if way == "off":
        return None
    drafter = NgramDrafter() if runner.drafter is None else RunnerDrafts()
    return Speculating(drafter, fixed=FIXED if way == "fixed" else None)


def new_engine(
    runner: Runner,
    tokenizer: Tokenizer,
    model: StepModel,
    *,
    max_running: int,
    clock: Clock,
    emit: Emit,
    speculating: Speculating | None,
) -> Engine:
    """An engine of its own around the runner, which no other may use meanwhile."""
    facts = runner.facts
    scheduler = Scheduler(
        make_policy("sloserve"),
        model,
        OnlineCorrection(),
        Limits(
            block_size=facts.block_size,
            num_blocks=facts.num_blocks,
            max_running=max_running,
        ),
        new_law=LengthLaw,
        max_model_len=facts.max_model_len,
        prefix_caching=False,
        speculating=speculating,
    )
    return Engine(scheduler, runner, tokenizer, clock=clock, emit=emit)


def ask(
    engine: Engine, number: int, prompt: Sequence[int], *, temperature: float, num_output: int
) -> None:
    """A request that answers with so many tokens; its key and its seed are `number`."""
    sampling = SamplingParams(
        temperature=temperature, seed=number, max_tokens=num_output, ignore_eos=True
    )
    engine.add(
        Generate(
            key=str(number),
            prompt=list(prompt),
            sampling=sampling,
            promise=PATIENT,
            arrival_s=engine.clock.now_s(),
        )
    )


def run(
    runner: TorchRunner,
    tokenizer: HfTokenizer,
    model: StepModel,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    num_output: int,
    clock: Clock,
    speculating: Speculating | None,
    width: int | None = None,
) -> Run:
    """
    All prompts at once, or `width` at a time, through an engine of their own; what it learned of
    drafts stays.
    """
    streams = width or len(prompts)
    outputs: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}

    def emit(events: list[tuple[str, Event]]) -> None:
        for key, event in events:
            if isinstance(event, Chunk):
                outputs[key] += event.token_ids

    engine = new_engine(
        runner,
        tokenizer,
        model,
        max_running=streams,
        clock=clock,
        emit=emit,
        speculating=speculating,
    )
    gc.collect()
    for number, prompt in enumerate(prompts):
        ask(engine, number, prompt, temperature=temperature, num_output=num_output)
    while sum(map(bool, outputs.values())) < streams:  # prefills are the same in every way
        engine.turn()
    num_before = sum(map(len, outputs.values()))
    counters = engine.scheduler.counters
    steps_before = counters.num_steps
    start_s = clock.now_s()
    while engine.has_work:
        engine.turn()
    time_s = clock.now_s() - start_s
    return Run(
        time_s=time_s * num_output * len(prompts) / (num_output * len(prompts) - num_before),
        num_steps=counters.num_steps - steps_before,
        num_drafts=counters.accepted_drafts + counters.rejected_drafts,
        num_accepted=counters.accepted_drafts,
        tokens=list(outputs.values()),
    )


def lines_of(
    kind: str,
    temperature: float,
    width: int,
    rounds: Sequence[dict[str, Run]],
    num_output: int,
    num_answers: int,
) -> list[Line]:
    """The table's rows for one cell."""
    lines = []
    for way in sorted(rounds[0], key=WAYS.index):
        taken = [r[way] for r in rounds]
        ratios = [r["off"].time_s / r[way].time_s for r in rounds]
        lower, middle, upper = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        time_s = statistics.median(one.time_s for one in taken)
        num_drafts = sum(one.num_drafts for one in taken)
        steps = statistics.median(one.num_steps for one in taken)
        lines.append(
            Line(
                kind=kind,
                temperature=temperature,
                width=width,
                way=way,
                ratio=middle,
                lower=lower,
                upper=upper,
                tokens_per_s=width * num_answers * num_output / time_s,
                tokens_per_step=num_answers * num_output / max(1.0, steps),
                acceptance=sum(one.num_accepted for one in taken) / num_drafts
                if num_drafts
                else None,
                same_text=all(r["off"].tokens == r[way].tokens for r in rounds),
            )
        )
    return lines


def shown(line: Line) -> str:
    """A row of the table."""
    acceptance = "" if line.acceptance is None else f"{line.acceptance:.2f}"
    return (
        f"| {line.kind} | {line.temperature:g} | {line.width} | {line.way} |"
        f" {line.ratio:.2f} ({line.lower:.2f} to {line.upper:.2f}) | {line.tokens_per_s:.0f} |"
        f" {line.tokens_per_step:.2f} | {acceptance} | {'yes' if line.same_text else 'no'} |"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, and on what."""
    parser.add_argument("--model", default="builtin://tiny")
    parser.add_argument("--drafter", default="ngram", help="ngram, or the source of a draft model")
    parser.add_argument("--widths", default="1,8,32")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--temperatures", default="0,0.7")
    parser.add_argument("--output", type=int, default=96)
    parser.add_argument(
        "--answers", type=int, default=1, help="of a stream, one by one (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cpu-time", action="store_true", help="on a machine that others use")
    parser.add_argument("--profile", default=None, help="step times, instead of measuring them")
    parser.add_argument("--json", type=Path, default=None)


def clock_of(args: argparse.Namespace) -> Clock:
    """The clock that was asked for; processor time is that of one thread."""
    args.threads = 1 if args.cpu_time else args.threads
    return CpuClock() if args.cpu_time else RealClock()


def loaded(args: argparse.Namespace, clock: Clock) -> tuple[TorchRunner, HfTokenizer, StepModel]:
    """The model, its tokenizer and its step times: measured, unless they are given."""
    runner, tokenizer = load_model(
        resolve_source(args.model),
        model=ModelSpec(source=args.model, served_name="bench", max_model_len=2048),
        engine=EngineSpec(threads=args.threads, dtype=args.dtype, kv_bytes=400_000_000),
        drafter=None if args.drafter == "ngram" else resolve_source(args.drafter),
    )
    if args.profile:
        return runner, tokenizer, load_profile(args.profile).step
    profile = measure(
        runner,
        model=args.model,
        threads=args.threads,
        clock=clock.now_s,
        max_mape=9.0,
        max_p95=9.0,
    )
    return runner, tokenizer, profile.step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS), help="off first")
    args = parser.parse_args()
    clock = clock_of(args)
    ways = args.ways.split(",")
    if ways[0] != "off" or not set(ways) <= set(WAYS):
        parser.error(f"--ways {args.ways}: off, and more of {', '.join(WAYS)}")

    runner, tokenizer, model = loaded(args, clock)
    print(f"{runner.facts.hardware}, {runner.facts.dtype}; {model}", flush=True)
    print("| text | temperature | streams | drafts | tokens/s against off | tokens/s |"
          " tokens a step | accepted | same text |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    found: list[Line] = []
    for width in map(int, args.widths.split(",")):
        for kind in args.kinds.split(","):
            prompts = texts(kind, width * args.answers, tokenizer)
            for temperature in map(float, args.temperatures.split(",")):
                rounds: list[dict[str, Run]] = []
                learned = {way: speculating(runner, way) for way in ways}
                for number in range(args.rounds + 1):  # the first is to warm up
                    order = ways if number % 2 else ways[::-1]
                    rounds.append(
                        {
                            way: run(
                                runner,
                                tokenizer,
                                model,
                                prompts,
                                temperature=temperature,
                                num_output=args.output,
                                clock=clock,
                                speculating=learned[way],
                                width=width,
                            )
                            for way in order
                        }
                    )
                lines = lines_of(kind, temperature, width, rounds[1:], args.output, args.answers)
                found += lines
                print("\n".join(map(shown, lines)), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(line) for line in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
