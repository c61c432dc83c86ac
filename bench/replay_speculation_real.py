"""
The most telling part of bench.replay_speculation in real time: `--real`.

    python -m bench.replay_speculation --real [--texts copying-0] [--load mix] [--targets tight]
                                       [--ways fcfs-Never,...]     about 45 quiet minutes
    python -m bench.replay_speculation --real --rates 0.5,1,1.5 --windows 60

Capacity at 90 % of one real replica behind a gateway: `fcfs` without drafts and with 4 for
everyone, `sloserve` without, with 4, and by need; with prompts that say a passage over and over
(`copying-0`) or are the replay's own random words (`trace-0`); answers are greedy. First `sloserve
profile` measures step times; each policy begins at RATE of the capacity that the simulator predicts
with them, and goes up or down until its capacity is bracketed. Or all are measured at `--rates`, in
that order. The ways take turns, window by window. Windows are kept in `real` (or `real-mix`) beside
what was simulated under the same promises: started again, it goes on where it was. At the end step
times are fitted on what these windows took, and each is simulated with the same arrivals.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from bench.replay_calibrate import load_host, sample_of_step, thinned, write_fit
from bench.replay_plan import TARGET, options_of
from bench.replay_service import Running, serving, since
from bench.replay_speculation_table import Result, line, table
from bench.replay_speculation_targets import REPLAY
from bench.replay_speculation_ways import Series, Way
from rich.console import Console

from sloserve.load.client import run_load
from sloserve.load.endpoint import Endpoint, Prompts, examine
from sloserve.load.options import read_service, targets_of
from sloserve.load.records import judge
from sloserve.load.report import Window, provenance, write_json
from sloserve.load.summary import ALL, summarise
from sloserve.load.sweep import Search
from sloserve.perf import Sample
from sloserve.simulate.run import find_capacity

RATE = 0.8
"""Of the predicted capacity: steps of an idle process are shorter than those of a busy one."""
BRACKET = 0.25
"""How far apart the rates are that a capacity lies between; there a line joins the two points."""
LEAST_RATE = 0.1
"""Nobody looks for a capacity below: a window would hold a dozen requests."""
TEXTS = ("copying-0", "trace-0")
PASSAGE = 40
DRAIN_S = 60.0
SAMPLES = 300
DRAFTS = re.compile(
    r'^sloserve_draft_tokens_total\{.*result="(\w+)".*\} ([0-9.e+]+)$', re.MULTILINE
)

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
            rate = search.next_rate()
            if rate is None or rate < LEAST_RATE:
                continue
            open_ways += 1
            results.append(measure(way, round(rate, 2)))
            search.tell(rate, results[-1]["measured"]["classes"][ALL]["attainment"])
        if not open_ways:
            return found


def at_rates(
    ways: Sequence[Way], rates: Sequence[float], measure: Measure
) -> list[tuple[Way, list[Result]]]:
    """One window of each way at each rate, the ways by turns."""
    found: list[tuple[Way, list[Result]]] = [(way, []) for way in ways]
    for rate in rates:
        for way, results in found:
            results.append(measure(way, rate))
    return found


def play(args: argparse.Namespace, console: Console) -> int:
    """Measure what is not there yet, simulate the same, and print; the exit code."""
    texts = [text for text in args.texts if text in TEXTS]
    if not texts:
        console.print(f"--real measures --texts {', '.join(TEXTS)}, not {', '.join(args.texts)}")
        return 2
    series = Series(args.targets, args.load, args.windows, args.threads)
    profile = measured_profile(series)

    def measure(way: Way, rate: float) -> Result:
        path, key = series.file(f"{way.name}-{rate:.2f}"), series.key(way, rate)
        if path.exists():
            kept: Result = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return kept
        found = asyncio.run(window(series, way, rate=rate, profile=profile))
        result: Result = {"key": key, "made": provenance()} | found
        write_json(path, result)
        console.print(line(way, result), highlight=False)
        return result

    ways = [Way(text, *way.split("-")) for text in texts for way in args.ways]
    if args.rates:
        found = at_rates(ways, args.rates, measure)
    else:
        policies = {way.policy for way in ways}
        starts = {policy: _start(series, policy, texts[0], profile) for policy in policies}
        found = take_turns(ways, [starts[way.policy] for way in ways], measure)
    _simulate(series, found, quick=profile)
    lines = table(found)
    summary = series.file("summary", kind="md")
    summary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


def measured_profile(series: Series) -> Path:
    """Step times of the small model: measured now where they are not yet there."""
    path = series.targets.folder / "real" / "profile.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        words = ["profile", "--model", "builtin://tiny", "--threads", str(series.threads)]
        words += ["--kv-size", "1Gi", "--output", str(path)]
        subprocess.run([sys.executable, "-m", "sloserve.cli", *words], check=True)
    return path


def _start(series: Series, policy: str, text: str, profile: Path) -> float:
    scenario = series.scenario(profile=profile, host=REPLAY / "host-served.json")
    found = find_capacity(
        series.served(scenario, Way(text, policy, "Never")),
        target=TARGET,
        tolerance=0.05,
        start=3.0,
        repeats=2,
    )
    return max(LEAST_RATE, round(RATE * found.rate, 2))


async def window(
    series: Series, way: Way, *, rate: float, profile: Path, repeat: int = 0
) -> Result:
    """One window with a service of its own; each `repeat` has other arrivals."""
    manifest = series.targets.manifest
    spec = read_service(manifest)
    classes = {c.name: c for c in spec.classes}
    options = options_of(series.load, spec=spec, duration_s=series.window_s)
    trace = options.prepare(classes, default_class=spec.default_class)
    load = options.window(trace, rate=rate, repeat=repeat)
    fixed = way.mode == "Fixed"
    async with serving(
        manifest,
        policy=series.setting(way),
        profile=profile,
        threads=series.threads,
        log=series.file(f"logs/{way.name}-{rate:.2f}-{repeat}", kind="log"),
        module="bench.replay_speculation_fixed" if fixed else "sloserve.cli",
        more=() if fixed else ("--speculation", way.mode),
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


def _simulate(series: Series, found: Sequence[tuple[Way, list[Result]]], *, quick: Path) -> None:
    """Every window with the step times of all, and drafts as they were recorded."""
    spells = [
        [Sample(*row) for row in result["steps"]] for _, results in found for result in results
    ]
    profile, host = series.file("profile-served"), series.file("host-served")
    way_s = load_host(REPLAY / "host-served.json").way_in_s * 2
    steps = [sample for spell in spells for sample in spell]
    write_fit(steps, spells, [way_s], quick=quick, profile_path=profile, host_path=host)
    scenario = series.scenario(profile=profile, host=host)
    for way, results in found:
        served = series.served(scenario, way)
        for result in results:
            rate = result["key"]["rate"]
            result["simulated"] = served.window(rate, repeat=0).to_dict()
            write_json(series.file(f"{way.name}-{rate:.2f}"), result)
