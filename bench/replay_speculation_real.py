"""
The most telling part of bench.replay_speculation in real time: `--real`.

    python -m bench.replay_speculation --real [--texts copying-0]     about 25 quiet minutes

Capacity at 90 % on the conversation trace of one real replica behind a gateway: `fcfs`, `sloserve`
without drafts and by need, with prompts that say a passage over and over (`copying-0`) or are the
replay's own random words (`trace-0`); answers are greedy. First `sloserve profile` measures step
times; each policy begins at RATE of the capacity that the simulator predicts with them, and goes up
or down until its capacity is bracketed. The ways take turns, window by window of two minutes.
Windows are kept in bench/results/speculation/real/: started again, it goes on where it was. At the
end step times are fitted on what these windows took, and each is simulated with the same arrivals.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from bench.replay_calibrate import load_host, sample_of_step, thinned, write_fit
from bench.replay_plan import TARGET, load_plans, options_of, scenario_of, with_setting
from bench.replay_service import Running, serving, since
from rich.console import Console

from sloserve.load.client import run_load
from sloserve.load.endpoint import Endpoint, Prompts, examine
from sloserve.load.options import read_service, targets_of
from sloserve.load.records import judge
from sloserve.load.report import Window, provenance, write_json
from sloserve.load.summary import ALL, summarise
from sloserve.load.sweep import Search, crossing
from sloserve.perf import Sample, load_profile
from sloserve.simulate.acceptance import read_acceptance
from sloserve.simulate.drafts import PROPOSE_US
from sloserve.simulate.run import find_capacity

HERE = Path(__file__).parent
TARGETS = HERE / "targets.yaml"
REPLAY = HERE / "results" / "replay"
ACCEPTANCE = HERE / "acceptance"
RESULTS = HERE / "results" / "speculation" / "real"
LOAD = "conversation"
RATE = 0.8
"""Of the predicted capacity: steps of an idle process are shorter than those of a busy one."""
BRACKET = 0.25
"""How far apart the rates are that a capacity lies between; there a line joins the two points."""
WAYS = (("fcfs", "Never"), ("sloserve", "Never"), ("sloserve", "Auto"))
TEXTS = ("copying-0", "trace-0")
PASSAGE = 40
DRAIN_S = 60.0
SAMPLES = 300
DRAFTS = re.compile(
    r'^sloserve_draft_tokens_total\{.*result="(\w+)".*\} ([0-9.e+]+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Way:
    """Prompts, a policy, and who gets drafts."""

    text: str
    policy: str
    mode: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.text}-{self.policy}-{self.mode}"


Result = dict[str, Any]
Measure = Callable[[Way, float], Result]


@dataclass(frozen=True, slots=True)
class Copying(Prompts):
    """Prompts that say a passage of a real text over and over."""

    def body(self, *, model: str, number: int, prompt_tokens: int, output_tokens: int) -> bytes:
        """As usual, but `pool` is a text."""
        fields = json.loads(
            Prompts.body(
                self, model=model, number=number, prompt_tokens=1, output_tokens=output_tokens
            )
        )
        start = random.Random(number).randrange(len(self.pool) - PASSAGE)
        passage = list(self.pool[start : start + PASSAGE])
        times = prompt_tokens // PASSAGE + 1
        fields["prompt"] = (passage * times)[:prompt_tokens]
        return json.dumps(fields, separators=(",", ":")).encode()


def take_turns(
    ways: Sequence[Way], starts: Sequence[float], measure: Measure
) -> list[tuple[Way, list[Result]]]:
    """One window of each way after the other, until every capacity is bracketed (or given up)."""
    searches = [Search(start, TARGET, tolerance=BRACKET, confirm=False) for start in starts]
    found: list[tuple[Way, list[Result]]] = [(way, []) for way in ways]
    while True:
        open_ways = 0
        for search, (way, results) in zip(searches, found, strict=True):
            if (rate := search.next_rate()) is None:
                continue
            open_ways += 1
            results.append(measure(way, round(rate, 2)))
            search.tell(rate, results[-1]["measured"]["classes"][ALL]["attainment"])
        if not open_ways:
            return found


def capacity(results: Sequence[Result], which: str) -> float | None:
    """Requests/s really offered where attainment falls through the target."""
    windows = [result[which] for result in results]
    return crossing({w["rate"]: w["classes"][ALL]["attainment"] for w in windows}, TARGET)


def play(args: argparse.Namespace, console: Console) -> int:
    """Measure what is not there yet, simulate the same, and print; the exit code."""
    texts = [text for text in args.texts if text in TEXTS]
    if not texts:
        console.print(f"--real measures --texts {', '.join(TEXTS)}, not {', '.join(args.texts)}")
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    profile = measured_profile(args.threads)
    starts = {policy: _start(policy, profile, args.windows) for policy, _ in WAYS}

    def measure(way: Way, rate: float) -> Result:
        path = RESULTS / f"{way.name}-{rate:.2f}.json"
        key = {"windows": args.windows, "threads": args.threads, "rate": rate} | asdict(way)
        if path.exists():
            kept: Result = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return kept
        found = asyncio.run(window(way, args, rate=rate, profile=profile))
        result: Result = {"key": key, "made": provenance()} | found
        write_json(path, result)
        console.print(_line(way, result), highlight=False)
        return result

    ways = [Way(text, policy, mode) for text in texts for policy, mode in WAYS]
    found = take_turns(ways, [starts[way.policy] for way in ways], measure)
    _simulate(found, args, quick=profile)
    lines = table(found)
    (RESULTS / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


def measured_profile(threads: int) -> Path:
    """Step times of the small model: measured now where they are not yet there."""
    path = RESULTS / "profile.json"
    if not path.exists():
        words = ["profile", "--model", "builtin://tiny", "--threads", str(threads)]
        words += ["--kv-size", "1Gi", "--output", str(path)]
        subprocess.run([sys.executable, "-m", "sloserve.cli", *words], check=True)
    return path


def table(found: Sequence[tuple[Way, list[Result]]]) -> list[str]:
    """Capacities, then every window, measured and simulated."""
    lines = ["| prompts | policy, speculation | capacity, requests/s | simulated |"]
    lines.append("| --- " * 4 + "|")
    for way, results in found:
        shown = [capacity(results, which) for which in ("measured", "simulated")]
        told = ["not bracketed" if rate is None else f"{rate:.2f}" for rate in shown]
        lines.append(f"| {way.text} | {way.policy}, {way.mode} | {' | '.join(told)} |")
    classes = sorted(n for n in found[0][1][0]["measured"]["classes"] if n != ALL)
    lines += [
        "",
        "| prompts | policy, speculation | requests/s | kept | simulated | goodput | "
        + " | ".join(f"{name}: goodput" for name in classes)
        + " | drafts right | tokens/s | TPOT p50, ms | the client |",
        "| --- " * (len(classes) + 10) + "|",
    ]
    rows = [(way, result) for way, results in found for result in results]
    rows.sort(key=lambda row: (row[0].name, row[1]["measured"]["rate"]))
    return lines + [_row(way, result, classes) for way, result in rows]


def _row(way: Way, result: Result, names: Sequence[str]) -> str:
    rows, drafts = result["measured"]["classes"], result["drafts"]
    row, drafted = rows[ALL], drafts["accepted"] + drafts["rejected"]
    cells = [
        way.text,
        f"{way.policy}, {way.mode}",
        f"{result['measured']['rate']:.2f}",
        f"{row['attainment']:.1%}",
        f"{result['simulated']['classes'][ALL]['attainment']:.1%}",
        f"{row['goodput']:.2f}",
        *(f"{rows[name]['goodput']:.2f}" if name in rows else "-" for name in names),
        f"{drafts['accepted'] / drafted:.2f} of {drafted}" if drafted else "",
        f"{row['output_rate']:.0f}",
        "-" if row["tpot"]["p50"] is None else f"{row['tpot']['p50'] * 1000:.1f}",
        result["measured"]["facts"]["client"]["bottleneck"] or "kept up",
    ]
    return "| " + " | ".join(cells) + " |"


def _setting(policy: str) -> str:
    """The policy with its best setting, as the replay found it."""
    plans = load_plans(REPLAY / "plan.json")
    return next(p.setting for p in plans if (p.load, p.policy) == (LOAD, policy))


def _start(policy: str, profile: Path, windows_s: float) -> float:
    scenario = scenario_of(
        LOAD,
        manifest=TARGETS,
        profile=load_profile(str(profile)),
        host=load_host(REPLAY / "host-served.json"),
        duration_s=windows_s,
    )
    found = find_capacity(
        with_setting(scenario, _setting(policy)),
        target=TARGET,
        tolerance=0.05,
        start=3.0,
        repeats=2,
    )
    return round(RATE * found.rate, 2)


async def window(
    way: Way, args: argparse.Namespace, *, rate: float, profile: Path, repeat: int = 0
) -> Result:
    """One window with a service of its own; each `repeat` has other arrivals."""
    spec = read_service(TARGETS)
    classes = {c.name: c for c in spec.classes}
    options = options_of(LOAD, spec=spec, duration_s=args.windows)
    trace = options.prepare(classes, default_class=spec.default_class)
    load = options.window(trace, rate=rate, repeat=repeat)
    async with serving(
        TARGETS,
        policy=_setting(way.policy),
        profile=profile,
        threads=args.threads,
        log=RESULTS / "logs" / f"{way.name}-{rate:.2f}-{repeat}.log",
        more=("--speculation", way.mode),
    ) as service:
        endpoint = Endpoint(service.url, spec.model.served_name)
        prompts = await examine(service.session, endpoint, seed=options.seed)
        if way.text == "copying-0":
            prompts = Copying(
                await _text(service, spec.model.served_name),
                0.0,
                prompts.exact_length,
                options.seed,
            )
        before = await service.counters()
        records, health = await run_load(
            service.session,
            endpoint,
            load,
            prompts=prompts,
            classes=classes,
            drain_s=DRAIN_S,
        )
        counted = since(before, await service.counters())
        steps = await service.steps()
        drafts = await _drafts(service)
    summary = Window(
        rate=len(load) / load.duration_s,
        duration_s=load.duration_s,
        policy=f"{way.policy}, {way.mode}",
        classes=summarise(
            [judge(r) for r in records], duration_s=load.duration_s, targets=targets_of(classes)
        ),
        notes=load.notes,
        facts={"client": health.to_dict()},
    )
    samples = [sample for step in steps if (sample := sample_of_step(step)) is not None]
    return {
        "measured": summary.to_dict(),
        "gateway": {name: asdict(count) for name, count in counted.items()},
        "drafts": drafts,
        "steps": [astuple(sample) for sample in thinned(samples, most=SAMPLES)],
    }


async def _text(service: Running, model: str) -> list[int]:
    """Python's documentation in tokens of the service."""
    import pydoc_data.topics

    topics = sorted(pydoc_data.topics.topics.items())
    text = "\n".join(str(value) for _, value in topics)[:100_000]
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    async with service.session.post(f"{service.replica_url}/tokenize", json=body) as response:
        response.raise_for_status()
        tokens: list[int] = (await response.json())["tokens"]
        return tokens


async def _drafts(service: Running) -> dict[str, int]:
    """What became of all drafts, as the replica counted."""
    async with service.session.get(f"{service.replica_url}/metrics") as response:
        found = DRAFTS.findall(await response.text())
    return {"accepted": 0, "rejected": 0} | {name: int(float(value)) for name, value in found}


def _simulate(
    found: Sequence[tuple[Way, list[Result]]], args: argparse.Namespace, *, quick: Path
) -> None:
    """Every window with the step times of all, and drafts as they were recorded."""
    spells = [
        [Sample(*row) for row in result["steps"]] for _, results in found for result in results
    ]
    profile, host = RESULTS / "profile-served.json", RESULTS / "host-served.json"
    way_s = load_host(REPLAY / "host-served.json").way_in_s * 2
    steps = [sample for spell in spells for sample in spell]
    write_fit(steps, spells, [way_s], quick=quick, profile_path=profile, host_path=host)
    scenario = scenario_of(
        LOAD,
        manifest=TARGETS,
        profile=load_profile(str(profile)),
        host=load_host(host),
        duration_s=args.windows,
    )
    for way, results in found:
        settings = scenario.settings
        if way.mode == "Auto":
            acceptance = read_acceptance(ACCEPTANCE / f"{way.text}.json")
            settings = replace(settings, acceptance=acceptance, propose_s=PROPOSE_US * 1e-6)
        setting = with_setting(replace(scenario, settings=settings), _setting(way.policy))
        for result in results:
            rate = result["key"]["rate"]
            result["simulated"] = setting.window(rate, repeat=0).to_dict()
            write_json(RESULTS / f"{way.name}-{rate:.2f}.json", result)


def _line(way: Way, result: Result) -> str:
    row, rate = result["measured"]["classes"][ALL], result["measured"]["rate"]
    return f"{way.name} at {rate:.2f}: {row['attainment']:.1%} kept, goodput {row['goodput']:.2f}"
