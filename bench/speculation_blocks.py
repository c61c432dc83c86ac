"""
Tokens per second with drafts against without, in blocks of few steps that take turns.

    python -m bench.speculation_blocks [--minutes 1 | --pairs N] [--block 2] [--way need]
                                       [--widths 1,8,32] [--kinds copying,prose,code]
                                       [--temperatures 0,0.7] [--output 96] [--answers 64]
                                       [--threads N] [--dtype float32] [--cpu-time] [--json FILE]

Where `bench/speculation.py` compares whole runs, and so the processor's clock in one with that in
another, two engines live side by side here, one without drafts and one with (`--way`), and take
turns every `--block` steps: a pair of blocks lasts 10 to 50 ms. Every two pairs are ABBA, and who
is A is drawn. Each engine has KV memory, requests, and knowledge (of drafts, step times, lengths)
of its own, over the same weights; both answer the same prompts with the same seeds. While one
runs, the other's clock stands still.

Not one engine whose drafts are switched on and off: drafts hurry it through text that is easy to
guess, and the blocks without them linger there, so that the next ones with find it easy once more.
Counted over `bench/acceptance/` (one stream, 8 drafts wherever there is a proposal, the first 96
tokens or all 256), blocks of 4 to 16 steps would have 10 to 18 % more tokens a step than drafts
that are always on at temperature 0, and 0.6 to 5 % more at 0.7. The n-gram index would also have to
catch up with what was said meanwhile.

Steps count in which `--widths` streams decode and nothing else is done: whoever ends makes room for
the next, and the step with the next one's prefill is run but left out, on both sides. So no step is
left out for what it yielded (dropping blocks in which an answer ended would drop lucky ones). First
answers are of different lengths, lest all end at once. The first WARM_UP_STEPS of each, or as many
as an answer has tokens, are not counted. Each stream has `--answers` prompts; they come again, with
other seeds, when they are used up: errors are those for these prompts.

    ratio = (tokens with / seconds with) / (tokens without / seconds without), over all pairs

No pair is dropped. A mean of the pairs' own ratios would ask for another thing: a block's tokens
are luck and skewed, so the mean of their logarithms lies below that of their mean; and a slow
moment weighs the same in both sums as it is. The standard error is that of the ratio's logarithm,
linearised, over G = NUM_GROUPS groups of consecutive pairs, each many answers long: pairs of one
answer fare alike, and taken one by one they make the error of one stream half of what it is.

    error^2 = G / (G - 1) * sum_g ((share of tokens with - share of seconds with, of group g)
                                   - (the same without))^2

How long to go on (`--minutes` a cell after the warm-up, else `--pairs`) is said beforehand.
`--way off` compares none with none: what this measurement makes of nothing. By the wall clock the
machine must be idle otherwise: with two threads, steps of 6 ms took 100 to 300 beside one more busy
process. `--cpu-time` does not mind.
"""

import argparse
import gc
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from math import nan, sqrt
from types import TracebackType
from typing import Protocol

from sloserve.model.allocator import malloc_environment

if __name__ == "__main__" and any(k not in os.environ for k in malloc_environment()):
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, **malloc_environment()})

from bench.speculation import (
    WAYS,
    add_arguments,
    ask,
    clock_of,
    loaded,
    new_engine,
    speculating,
    texts,
)

from sloserve.engine.clock import Clock
from sloserve.engine.events import Broken, Chunk, Event
from sloserve.engine.runner import Runner
from sloserve.engine.tokenizer import Tokenizer
from sloserve.model.kv import KvCache
from sloserve.model.runner import TorchRunner
from sloserve.perf import StepModel
from sloserve.scheduler import Speculating

WARM_UP_STEPS = 256
"""Of each engine, before anything counts."""
NUM_GROUPS = 32
"""Known so well is the error itself: to an eighth."""
MAX_LEFT_OUT = 1000
"""Steps, for each that counts."""
COLUMNS = (
    "text", "temperature", "streams", "drafts", "tokens/s against off", "pairs", "tokens/s off",
    "tokens/s", "tokens a step", "steps with drafts", "accepted", "left out", "same text",
)  # fmt: skip


class Stopwatch:
    """A clock that goes on only within `with`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._passed_s = 0.0
        self._since_s: float | None = None

    def __enter__(self) -> None:
        self._since_s = self._clock.now_s()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._since_s is not None
        self._passed_s += self._clock.now_s() - self._since_s
        self._since_s = None

    def now_s(self) -> float:
        """Seconds spent within."""
        if self._since_s is None:
            return self._passed_s
        return self._passed_s + self._clock.now_s() - self._since_s

    def sleep_until(self, at_s: float) -> None:
        """Sleep by the clock below."""
        self._clock.sleep_until(self._clock.now_s() + at_s - self.now_s())


@dataclass(slots=True)
class Block:
    """A few steps of one engine that count, and how many were left out between them."""

    time_s: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    num_drafted_steps: int = 0
    num_drafts: int = 0
    num_accepted: int = 0
    num_left_out: int = 0


Pair = tuple[Block, Block]
"""Without drafts, and with."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: `way` against none."""

    kind: str
    temperature: float
    width: int
    way: str
    ratio: float  # of tokens per second
    error: float  # the ratio's standard error, as a share of it
    num_pairs: int
    off_tokens_per_s: float
    tokens_per_s: float
    tokens_per_step: float  # and row
    drafted_steps: float  # the share of steps that verified drafts
    acceptance: float | None
    left_out: float  # the share of steps that did not count
    same_text: bool  # of the answers that both gave


class Lane:
    """One engine that is never without `width` streams: whoever ends makes room for the next."""

    def __init__(
        self,
        runner: Runner,
        *,
        tokenizer: Tokenizer,
        model: StepModel,
        prompts: Sequence[Sequence[int]],
        width: int,
        temperature: float,
        num_output: int,
        clock: Clock,
        speculating: Speculating | None,
    ) -> None:
        self.answers: dict[int, list[int]] = {}
        """By number, as far as they go."""
        self.num_ended = 0
        self.width = width
        self.clock = Stopwatch(clock)
        self.engine = new_engine(
            runner,
            tokenizer,
            model,
            max_running=width,
            clock=self.clock,
            emit=self._take,
            speculating=speculating,
        )
        self._prompts = prompts
        self._ask = partial(ask, self.engine, temperature=temperature)
        self._num_output = num_output
        self._numbers = count()
        for place in range(width):
            self._add(num_output=max(2, num_output * (place + 1) // width))

    def block(self, num_steps: int) -> Block:
        """Turn the engine until `num_steps` steps counted. Raises where hardly any do."""
        block = Block()
        while block.num_steps < num_steps:
            if block.num_left_out > MAX_LEFT_OUT * (1 + block.num_steps):
                num_all = block.num_steps + block.num_left_out
                raise RuntimeError(
                    f"in {block.num_steps} of {num_all} steps {self.width} streams decode and"
                    " nothing else: is there memory for so many, is --output long enough?"
                )
            self._step(block)
        return block

    def close(self) -> None:
        """Give up what is running; the runner is free for another."""
        for number in self.answers:
            self.engine.cancel(str(number))

    def _step(self, block: Block) -> None:
        counters, timeline = self.engine.scheduler.counters, self.engine.timeline
        num_tokens, num_records = counters.output_tokens, timeline.num_steps
        num_ended, start_s = self.num_ended, self.clock.now_s()
        with self.clock:
            self.engine.turn()
        (record,) = timeline.since(num_records)
        if record.num_decodes == self.width and not record.num_prefill_tokens:
            block.time_s += self.clock.now_s() - start_s
            block.num_tokens += counters.output_tokens - num_tokens
            block.num_steps += 1
            block.num_drafted_steps += record.num_draft_tokens > 0
            block.num_drafts += record.num_draft_tokens
            block.num_accepted += record.num_accepted_drafts
        else:
            block.num_left_out += 1
        for _ in range(self.num_ended - num_ended):
            self._add(num_output=self._num_output)

    def _add(self, *, num_output: int) -> None:
        number = next(self._numbers)
        self.answers[number] = []
        self._ask(number, self._prompts[number % len(self._prompts)], num_output=num_output)

    def _take(self, events: list[tuple[str, Event]]) -> None:
        for key, event in events:
            if isinstance(event, Chunk):
                self.answers[int(key)] += event.token_ids
                self.num_ended += event.finish_reason is not None
            else:
                assert not isinstance(event, Broken), event.message


class Turns(Protocol):
    """Whatever gives blocks of steps."""

    def block(self, num_steps: int) -> Block:
        """The next `num_steps` steps that count."""
        ...


def pairs_of(off: Turns, on: Turns, *, num_steps: int, seed: int = 0) -> Iterator[Pair]:
    """
    Pairs of neighbouring blocks, without end. Every two pairs are ABBA, and it is drawn which is
    A: what goes up or down steadily cancels, and so does what comes back every so many steps.
    """
    dice = random.Random(seed)
    while True:
        first = dice.random() < 0.5
        for off_first in (first, not first):
            if off_first:
                without = off.block(num_steps)
                yield without, on.block(num_steps)
            else:
                with_drafts = on.block(num_steps)
                yield off.block(num_steps), with_drafts


def total(blocks: Sequence[Block]) -> Block:
    """All of them as one."""
    return Block(
        time_s=sum(b.time_s for b in blocks),
        num_tokens=sum(b.num_tokens for b in blocks),
        num_steps=sum(b.num_steps for b in blocks),
        num_drafted_steps=sum(b.num_drafted_steps for b in blocks),
        num_drafts=sum(b.num_drafts for b in blocks),
        num_accepted=sum(b.num_accepted for b in blocks),
        num_left_out=sum(b.num_left_out for b in blocks),
    )


def ratio(pairs: Sequence[Pair]) -> float:
    """Tokens per second with drafts over those without."""
    off, on = total([pair[0] for pair in pairs]), total([pair[1] for pair in pairs])
    return (on.num_tokens / on.time_s) / (off.num_tokens / off.time_s)


def error(pairs: Sequence[Pair], *, num_groups: int = NUM_GROUPS) -> float:
    """The standard error of the ratio, as a share of it; NaN where there is but one group."""
    num_groups = min(num_groups, len(pairs))
    if num_groups < 2:
        return nan
    off, on = total([pair[0] for pair in pairs]), total([pair[1] for pair in pairs])
    squares = 0.0
    for group in range(num_groups):
        begin, end = (len(pairs) * at // num_groups for at in (group, group + 1))
        own = pairs[begin:end]
        off_own, on_own = total([pair[0] for pair in own]), total([pair[1] for pair in own])
        with_drafts = on_own.num_tokens / on.num_tokens - on_own.time_s / on.time_s
        without = off_own.num_tokens / off.num_tokens - off_own.time_s / off.time_s
        squares += (with_drafts - without) ** 2
    return sqrt(num_groups / (num_groups - 1) * squares)


def line_of(
    pairs: Sequence[Pair],
    *,
    kind: str,
    temperature: float,
    width: int,
    way: str,
    same_text: bool,
) -> Line:
    """The table's row for one cell."""
    off, on = total([pair[0] for pair in pairs]), total([pair[1] for pair in pairs])
    num_left_out = off.num_left_out + on.num_left_out
    return Line(
        kind=kind,
        temperature=temperature,
        width=width,
        way=way,
        ratio=ratio(pairs),
        error=error(pairs),
        num_pairs=len(pairs),
        off_tokens_per_s=off.num_tokens / off.time_s,
        tokens_per_s=on.num_tokens / on.time_s,
        tokens_per_step=on.num_tokens / (on.num_steps * width),
        drafted_steps=on.num_drafted_steps / on.num_steps,
        acceptance=on.num_accepted / on.num_drafts if on.num_drafts else None,
        left_out=num_left_out / (num_left_out + off.num_steps + on.num_steps),
        same_text=same_text,
    )


def shown(line: Line) -> str:
    """A row of the table."""
    acceptance = "" if line.acceptance is None else f"{line.acceptance:.2f}"
    return (
        f"| {line.kind} | {line.temperature:g} | {line.width} | {line.way} |"
        f" {line.ratio:.4f} ± {line.ratio * line.error:.4f} | {line.num_pairs} |"
        f" {line.off_tokens_per_s:.0f} | {line.tokens_per_s:.0f} | {line.tokens_per_step:.3f} |"
        f" {line.drafted_steps:.1%} | {acceptance} | {line.left_out:.0%} |"
        f" {'yes' if line.same_text else 'no'} |"
    )


def beside(runner: TorchRunner) -> TorchRunner:
    """A second runner over the same weights with KV memory of its own, and no draft model."""
    cache = KvCache(
        runner.cache.shapes,
        num_blocks=runner.cache.num_blocks,
        block_size=runner.cache.block_size,
        dtype=runner.cache.dtype,
        device=runner.cache.device,
        path=runner.cache.path,
    )
    return TorchRunner(runner.model, cache=cache, facts=runner.facts, defaults=runner.defaults)


def measured(
    off: Lane, on: Lane, *, num_steps: int, num_warm_up: int, minutes: float, num_pairs: int | None
) -> list[Pair]:
    """The pairs of a cell after `num_warm_up` of them: `num_pairs`, else as many as fit."""
    pairs = pairs_of(off, on, num_steps=num_steps)
    gc.collect()
    for _ in range(num_warm_up):
        next(pairs)
    if num_pairs is not None:
        return [next(pairs) for _ in range(num_pairs)]
    until_s, found = time.monotonic() + 60 * minutes, [next(pairs)]
    while time.monotonic() < until_s:
        found.append(next(pairs))
    return found


def same_text(off: Lane, on: Lane) -> bool:
    """Whether both said the same, as far as both got."""
    both = off.answers.keys() & on.answers.keys()
    pairs = [zip(off.answers[number], on.answers[number], strict=False) for number in both]
    return all(one == other for pair in pairs for one, other in pair)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_arguments(parser)
    parser.set_defaults(answers=64)
    parser.add_argument("--way", choices=WAYS, default="need", help="against off (%(default)s)")
    parser.add_argument("--block", type=int, default=2, help="steps (%(default)s)")
    stop = parser.add_mutually_exclusive_group()
    stop.add_argument("--minutes", type=float, default=1.0, help="a cell (%(default)s)")
    stop.add_argument("--pairs", type=int, default=None, help="a cell")
    args = parser.parse_args()
    clock = clock_of(args)
    runner, tokenizer, model = loaded(args, clock)
    if runner.facts.device != "cpu":
        parser.error(f"on {runner.facts.device} a second runner has no graphs: CPU only")
    plain = beside(runner)
    num_warm_up = -(-max(WARM_UP_STEPS, args.output) // args.block)
    print(f"{runner.facts.hardware}, {runner.facts.dtype}; {model}", flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    found: list[Line] = []
    for width in map(int, args.widths.split(",")):
        for kind in args.kinds.split(","):
            prompts = texts(kind, width * args.answers, tokenizer)
            for temperature in map(float, args.temperatures.split(",")):
                new_lane = partial(
                    Lane,
                    tokenizer=tokenizer,
                    model=model,
                    prompts=prompts,
                    width=width,
                    temperature=temperature,
                    num_output=args.output,
                    clock=clock,
                )
                off = new_lane(plain, speculating=None)
                on = new_lane(runner, speculating=speculating(runner, args.way))
                pairs = measured(
                    off,
                    on,
                    num_steps=args.block,
                    num_warm_up=num_warm_up,
                    minutes=args.minutes,
                    num_pairs=args.pairs,
                )
                line = line_of(
                    pairs,
                    kind=kind,
                    temperature=temperature,
                    width=width,
                    way=args.way,
                    same_text=same_text(off, on),
                )
                found.append(line)
                print(shown(line), flush=True)
                off.close()
                on.close()
    if args.json:
        args.json.write_text(json.dumps([asdict(line) for line in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
