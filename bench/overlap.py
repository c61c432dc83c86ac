"""
What planning beside the running step is worth.

    python bench/overlap.py [--seconds 20] [--rounds 3] [--running 256] [--eos] [--json FILE]
    python bench/overlap.py --torch [--streams 1,8,32] [--rounds 5]

The first serves a steady load on a simulated model on the real clock: about `--running` requests
at once, steps of about 20 ms, arrivals at any time, one in ten hopeless (they may not wait). It
takes turns with planning between steps and beside them, and tells how long steps waited for
their plan, what was lost between steps in all, and how soon the hopeless were declined. With
`--eos` nobody knows when an answer ends. The second serves `--streams` requests on a real model on
this CPU both ways, and tells tokens per second.
"""

import argparse
import gc
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sloserve.engine.clock import RealClock
from sloserve.engine.events import Chunk, Decided, Event, Generate
from sloserve.engine.loop import Engine
from sloserve.engine.reporter import Reporter
from sloserve.engine.runner import Runner
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.service import EngineThread, Stop
from sloserve.engine.sim import SimRunner, sim_facts
from sloserve.engine.timeline import StepRecord
from sloserve.engine.tokenizer import ByteTokenizer, Tokenizer
from sloserve.model.allocator import malloc_environment
from sloserve.perf import OnlineCorrection, StepModel, builtin_profile
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import Scheduler
from sloserve.slo import Decision, OnInfeasible, Promise, SloClass, Stage, Ttft

MODEL = StepModel(w=0.0165, a0=8e-6, c1=0.003, a1=2e-5, b=1e-8, d=3e-9)  # 20 ms at 256 decodes
MEAN_OUTPUT = 200
STEP_S = 0.020
WARM_S = 10.0  # two and a half times what an answer takes
HOPELESS_SHARE = 0.1
CLASSES = tuple(
    SloClass(name, ttft=Ttft(target_s=2.0), stages=(Stage("decode", tpot_s),))
    for name, tpot_s in (("fast", 0.05), ("usual", 0.1), ("slow", 0.2))
)


@dataclass(slots=True)
class Served:
    """What came out of an engine: tokens by request, and when each was decided."""

    tokens: dict[str, int] = field(default_factory=dict)
    put_s: dict[str, float] = field(default_factory=dict)
    declined_after_s: list[float] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    done: threading.Event = field(default_factory=threading.Event)

    def emit(self, events: list[tuple[str, Event]]) -> None:
        """In the engine's thread."""
        now_s = time.monotonic()
        for key, event in events:
            if isinstance(event, Decided):
                if event.decision is Decision.DECLINED:
                    self.declined_after_s.append(now_s - self.put_s[key])
            elif isinstance(event, Chunk):
                self.tokens[key] = self.tokens.get(key, 0) + len(event.token_ids)
                if event.finish_reason is not None:
                    self.left.discard(key)
                    if not self.left:
                        self.done.set()


@dataclass(frozen=True, slots=True)
class Line:
    """One way, over all rounds. Times in milliseconds, shares of the time between step ends."""

    way: str
    steps: int
    mean_rows: float
    period_ms: float
    plan_p50_ms: float
    plan_p99_ms: float
    plan_share: float
    outside_share: float
    foreseen_share: float
    declined_p50_ms: float
    declined_p99_ms: float


def an_engine(
    runner: Runner, tokenizer: Tokenizer, model: StepModel, served: Served, *, overlap: bool
) -> EngineThread:
    """An engine in its thread, with its reporter, as a replica has them."""
    facts = runner.facts
    scheduler = Scheduler(
        make_policy("sloserve"),
        model,
        OnlineCorrection(),
        Limits(facts.block_size, facts.num_blocks, max_running=1024),
        new_law=LengthLaw,
        classes=CLASSES,
        max_model_len=facts.max_model_len,
        prefix_caching=False,
    )
    reporter = Reporter(scheduler, facts)
    engine = Engine(
        scheduler,
        runner,
        tokenizer,
        clock=RealClock(),
        emit=served.emit,
        before_step=reporter.offer,
        overlap=overlap,
    )
    return EngineThread(engine, reporter, on_end=lambda: None)


def an_ask(number: int, chance: random.Random, *, eos: bool) -> Generate:
    """One request of the steady load."""
    slo_class = chance.choice(CLASSES)
    hopeless = chance.random() < HOPELESS_SHARE
    output = 1024 if eos else max(1, round(chance.expovariate(1 / MEAN_OUTPUT)))
    return Generate(
        key=f"r{number}",
        prompt=[65] * chance.randint(50, 350),
        sampling=SamplingParams(max_tokens=output, ignore_eos=not eos),
        promise=Promise(
            slo_class.name,
            ttft_s=0.001 if hopeless else 2.0,
            stages=slo_class.stages,
            on_infeasible=OnInfeasible.DECLINE if hopeless else OnInfeasible.DEGRADE,
        ),
        arrival_s=time.monotonic(),
        last_hop=not hopeless,
    )


def steady(
    *, overlap: bool, num_running: int, seconds: float, eos: bool, seed: int
) -> tuple[list[StepRecord], list[float], float]:
    """The steps of a steady load, how soon the hopeless were declined, and the share foreseen."""
    facts = sim_facts(num_blocks=40_000, steps_aside=True)
    probability = 1 / MEAN_OUTPUT if eos else 0.0
    runner = SimRunner(MODEL, facts, RealClock(), seed=seed, eos_probability=probability)
    served, chance = Served(), random.Random(seed)
    thread = an_engine(runner, ByteTokenizer(), MODEL, served, overlap=overlap)

    def put(number: int) -> None:
        ask = an_ask(number, chance, eos=eos)
        served.put_s[ask.key] = ask.arrival_s
        thread.put(ask)

    thread.start()
    rate = num_running / (MEAN_OUTPUT * STEP_S) / (1 - HOPELESS_SHARE)
    begun_s = next_s = time.monotonic()
    number = 0
    while next_s < begun_s + seconds:
        time.sleep(max(0.0, next_s - time.monotonic()))
        put(number)
        number += 1
        next_s += chance.expovariate(rate)
    records = [r for r in thread.engine.timeline.since(0) if r.planned_s > begun_s + WARM_S]
    counters = thread.engine.scheduler.counters
    thread.put(Stop())
    thread.join()
    return records, served.declined_after_s, counters.num_foreseen / max(1, counters.num_steps)


def summarise(way: str, runs: Sequence[tuple[list[StepRecord], list[float], float]]) -> Line:
    """One line of the table."""
    records = [record for run in runs for record in run[0]]
    declined = sorted(1e3 * s for run in runs for s in run[1])
    plans = sorted(1e3 * record.plan_s for record in records)
    period_s = sum(record.period_s for record in records)
    model_s = sum(
        MODEL.step_s(r.num_decodes + r.num_prefill_tokens, context=r.context, pairs=r.pairs)
        for r in records
    )
    return Line(
        way=way,
        steps=len(records),
        mean_rows=statistics.fmean(record.num_rows for record in records),
        period_ms=1e3 * period_s / len(records),
        plan_p50_ms=_at(plans, 0.5),
        plan_p99_ms=_at(plans, 0.99),
        plan_share=sum(plans) / 1e3 / period_s,
        outside_share=1 - model_s / period_s,
        foreseen_share=statistics.fmean(run[2] for run in runs),
        declined_p50_ms=_at(declined, 0.5),
        declined_p99_ms=_at(declined, 0.99),
    )


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def simulated(args: argparse.Namespace) -> None:
    """The table of the steady load."""
    runs: dict[bool, list[tuple[list[StepRecord], list[float], float]]] = {False: [], True: []}
    for number in range(args.rounds):
        for overlap, taken in runs.items():
            taken.append(
                steady(
                    overlap=overlap,
                    num_running=args.running,
                    seconds=args.seconds,
                    eos=args.eos,
                    seed=number,
                )
            )
    lines = [summarise("beside" if way else "between", taken) for way, taken in runs.items()]
    heads = ("steps", "rows", "period", "plan p50", "p99", "share", "outside", "foreseen",
             "declined p50", "p99")  # fmt: skip
    print(f"{'planned':<8}" + "".join(f"{head:>13}" for head in heads))
    for x in lines:
        cells = (
            str(x.steps), f"{x.mean_rows:.0f}", f"{x.period_ms:.2f}", f"{x.plan_p50_ms:.3f}",
            f"{x.plan_p99_ms:.2f}", f"{x.plan_share:.2%}", f"{x.outside_share:.2%}",
            f"{x.foreseen_share:.0%}", f"{x.declined_p50_ms:.2f}", f"{x.declined_p99_ms:.1f}",
        )  # fmt: skip
        print(f"{x.way:<8}" + "".join(f"{cell:>13}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")


def on_torch(args: argparse.Namespace) -> None:
    """Tokens per second of a real model on this CPU, both ways."""
    from sloserve.model.hardware import num_cores
    from sloserve.model.load import load_model
    from sloserve.model.sources import resolve_source
    from sloserve.slo import EngineSpec, ModelSpec

    source = "builtin://tiny"
    runner, tokenizer = load_model(
        resolve_source(source),
        model=ModelSpec(source=source, served_name="bench"),
        engine=EngineSpec(threads=args.threads or num_cores()),
    )
    close: Callable[[], None] = runner.close
    runner.close = lambda: None  # type: ignore[method-assign]  # one runner serves all rounds
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    print(f"{runner.facts.hardware}, {runner.facts.dtype}")
    for streams in (int(text) for text in args.streams.split(",")):
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(args.rounds + 1):
            for overlap, taken in rates.items():
                rate = tokens_per_s(runner, tokenizer, streams, overlap=overlap)
                if number:  # the first round warms up
                    taken.append(rate)
        between, beside = (statistics.median(taken) for taken in rates.values())
        ratios = sorted(b / a for a, b in zip(rates[False], rates[True], strict=True))
        print(f"{streams:>3} streams: {between:.0f} tokens/s planned between steps, "
              f"{beside:.0f} beside: {beside / between:.3f} "
              f"(rounds {ratios[0]:.3f} to {ratios[-1]:.3f})")  # fmt: skip
    close()


def tokens_per_s(runner: Runner, tokenizer: Tokenizer, streams: int, *, overlap: bool) -> float:
    """Of so many requests that start together."""
    served = Served()
    thread = an_engine(runner, tokenizer, builtin_profile("tiny-cpu").step, served, overlap=overlap)
    chance = random.Random(0)
    asks = [
        Generate(
            key=f"r{number}",
            prompt=[chance.randrange(runner.facts.vocab_size) for _ in range(64)],
            sampling=SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True),
            promise=Promise("fast", ttft_s=600.0, stages=(Stage("decode", 60.0),)),
            arrival_s=time.monotonic(),
        )
        for number in range(streams)
    ]
    served.left = {ask.key for ask in asks}
    for ask in asks:
        served.put_s[ask.key] = ask.arrival_s
        thread.put(ask)
    start_s = time.monotonic()
    thread.start()
    assert served.done.wait(600)
    wall_s = time.monotonic() - start_s
    thread.put(Stop())
    thread.join()
    return sum(served.tokens.values()) / wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="a round, 10 to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--eos", action="store_true", help="answers end by themselves")
    parser.add_argument("--torch", action="store_true", help="a real model on this CPU")
    parser.add_argument("--streams", default="1,8,32", help="with --torch")
    parser.add_argument("--threads", type=int, help="with --torch (default: all cores)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.torch:
        if any(key not in os.environ for key in malloc_environment()):
            environment = {**os.environ, **malloc_environment()}
            os.execve(sys.executable, [sys.executable, *sys.argv], environment)
        on_torch(args)
    else:
        simulated(args)


if __name__ == "__main__":
    main()
