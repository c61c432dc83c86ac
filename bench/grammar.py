"""
What grammars cost: to compile, per token, and per step of the engine.

    python -m bench.grammar [--streams 1,8,32] [--rounds 5] [--json FILE]

First without a model: random walks through each grammar under its masks, over the small model's
4,096 tokens and over about 128,000 made from the words of Python's standard library. Then the
small model behind the engine's loop: `--streams` streams write `--output` tokens greedily, free and
as JSON of a schema, in turns, after one unmeasured round. All of it in processor time, which a busy
machine blurs less than it does wall time.
"""

import argparse
import json
import random
import re
import statistics
import sysconfig
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from sloserve.engine.clock import RealClock
from sloserve.engine.events import Event, Generate
from sloserve.engine.loop import Engine
from sloserve.engine.sampling import SamplingParams
from sloserve.grammar.compiler import Compiler, Vocabulary
from sloserve.grammar.constraint import Constraint, Kind, of_choices, of_schema
from sloserve.grammar.matcher import Grammar
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

PATIENT = Promise(slo_class="bench", ttft_s=600.0, stages=(Stage("answer", tpot_s=60.0),))
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["new", "vip", "blocked"]}, "maxItems": 3},
    },
    "required": ["name", "age", "mail", "tags"],
    "additionalProperties": False,
}
MANY = {"type": "array", "items": RECORD, "minItems": 1000}
OPTIONAL = {
    "type": "object",
    "properties": {f"field_{i}": {"type": ["string", "integer"]} for i in range(100)},
    "additionalProperties": False,
}
SHAPES = {
    "one of 3 texts": of_choices(["positive", "neutral", "negative"], field="-"),
    "regex: a date and a word": Constraint(Kind.REGEX, r"\d{4}-\d{2}-\d{2} [A-Za-z]+", "-"),
    "any JSON object": of_schema({"type": "object"}, field="-", lenient=False),
    "record of 4 fields": of_schema(RECORD, field="-", lenient=False),
    "100 optional fields": of_schema(OPTIONAL, field="-", lenient=False),
}


@dataclass(frozen=True, slots=True)
class Walk:
    """One grammar over one vocabulary. Milliseconds."""

    vocabulary: int
    shape: str
    compile_ms: float
    first_mask_ms: float
    mean_mask_ms: float
    p99_mask_ms: float
    accept_ms: float
    num_masks: int


@dataclass(frozen=True, slots=True)
class Served:
    """The small model at one width: processor milliseconds per step, medians of the rounds."""

    streams: int
    free_ms: float
    shaped_ms: float
    ratio: float


def wide_vocabulary(size: int = 128_000) -> Vocabulary:
    """Bytes, and the commonest pieces of words of the standard library, as one text a token."""
    counts: Counter[str] = Counter()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for word, times in Counter(re.findall(r" ?\w+| ?[^\w\s]+|\s+", path.read_text())).items():
            for end in range(2, min(len(word), 16) + 1):
                for begin in range(0, min(3, end - 1)):
                    counts[word[begin:end]] += times
    texts = dict.fromkeys(bytes([i]) for i in range(256))
    for text, _ in counts.most_common():
        if len(texts) >= size - 1:
            break
        texts[text.encode()] = None
    tokens = (*texts, b"<|end|>")
    end = len(tokens) - 1
    return Vocabulary(tokens, frozenset({end}), (end,), len(tokens))


def walk(compiler: Compiler, name: str, num_tokens: int, *, seed: int = 1) -> Walk:
    """Random answers under masks until enough tokens were drawn."""
    chance = random.Random(seed)
    start_s = time.thread_time()
    grammar = compiler.compile(SHAPES[name])
    compile_s = time.thread_time() - start_s
    masks_s: list[float] = []
    accepts_s: list[float] = []
    size = 0
    while len(masks_s) < num_tokens:
        matcher = grammar.matcher()
        for _ in range(64):
            start_s = time.thread_time()
            mask = matcher.mask()
            masks_s.append(time.thread_time() - start_s)
            size = len(mask) * 8
            allowed = [i for i, byte in enumerate(mask) if byte]
            at = chance.choice(allowed)
            token = 8 * at + chance.choice([b for b in range(8) if mask[at] >> b & 1])
            start_s = time.thread_time()
            matcher.accept(token)
            accepts_s.append(time.thread_time() - start_s)
            if matcher.ended or matcher.failure:
                break
    ordered = sorted(masks_s)
    return Walk(
        vocabulary=size,
        shape=name,
        compile_ms=compile_s * 1e3,
        first_mask_ms=masks_s[0] * 1e3,
        mean_mask_ms=statistics.mean(masks_s) * 1e3,
        p99_mask_ms=ordered[int(0.99 * len(ordered))] * 1e3,
        accept_ms=statistics.mean(accepts_s) * 1e3,
        num_masks=len(masks_s),
    )


def step_s(
    runner: TorchRunner,
    tokenizer: HfTokenizer,
    *,
    streams: int,
    output: int,
    grammar: Grammar | None,
) -> float:
    """Processor seconds per step, all threads together, of answers that begin at once."""
    profile = builtin_profile("tiny-cpu")
    facts = runner.facts
    scheduler = Scheduler(
        make_policy("sloserve"),
        profile.step,
        OnlineCorrection(start_margin_s=0.0),
        Limits(block_size=facts.block_size, num_blocks=facts.num_blocks),
        new_law=LengthLaw,
        classes=(),
        max_model_len=facts.max_model_len,
    )

    def emit(events: list[tuple[str, Event]]) -> None:
        pass

    engine = Engine(scheduler, runner, tokenizer, clock=RealClock(), emit=emit)
    sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, grammar=grammar)
    for i in range(streams):
        prompt = tokenizer.encode(f"Record number {i} as JSON:")
        engine.add(Generate(str(i), prompt, sampling, PATIENT, engine.clock.now_s()))
    begun_s = time.process_time()
    while engine.has_work:
        engine.turn()
    return (time.process_time() - begun_s) / engine.timeline.num_steps


def serve(widths: list[int], *, rounds: int, output: int) -> list[Served]:
    """Free and shaped, in turns, at every width."""
    runner, tokenizer = load_model(
        resolve_source("builtin://tiny"),
        model=ModelSpec(source="builtin://tiny", served_name="tiny"),
        engine=EngineSpec(kv_bytes=64 << 20, threads=1),  # two would wait for each other, spinning
    )
    facts = runner.facts
    compiler = Compiler(
        Vocabulary(tokenizer.definition(), tokenizer.special_ids, facts.eos_ids, facts.vocab_size)
    )
    shaped = compiler.compile(of_schema(MANY, field="-", lenient=False))
    lines = []
    for streams in widths:
        taken: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds + 1):
            for grammar in (None, shaped) if number % 2 else (shaped, None):
                seconds = step_s(runner, tokenizer, streams=streams, output=output, grammar=grammar)
                if number:
                    taken[grammar is not None].append(seconds)
        free_s, shaped_s = statistics.median(taken[False]), statistics.median(taken[True])
        lines.append(Served(streams, free_s * 1e3, shaped_s * 1e3, shaped_s / free_s))
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=2000, help="of the walks, per grammar")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tiny = HfTokenizer(resolve_source("builtin://tiny"))
    small = Vocabulary(tiny.definition(), tiny.special_ids, (0,), tiny.vocab_size)
    walks = [
        walk(compiler, name, args.tokens)
        for compiler in (Compiler(small), Compiler(wide_vocabulary()))
        for name in SHAPES
    ]
    print("| tokens | shape | compile ms | first mask | mean mask | p99 mask | accept |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for w in walks:
        print(
            f"| {w.vocabulary:,} | {w.shape} | {w.compile_ms:.1f} | {w.first_mask_ms:.2f} |"
            f" {w.mean_mask_ms:.3f} | {w.p99_mask_ms:.2f} | {w.accept_ms:.3f} |"
        )
    widths = [int(width) for width in args.streams.split(",")]
    served = serve(widths, rounds=args.rounds, output=args.output)
    print("| streams | free, ms a step | shaped | shaped / free |")
    print("| --- | --- | --- | --- |")
    for s in served:
        print(f"| {s.streams} | {s.free_ms:.2f} | {s.shaped_ms:.2f} | {s.ratio:.2f} |")
    if args.json:
        told = {"walks": [asdict(w) for w in walks], "served": [asdict(s) for s in served]}
        args.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
