"""
The most telling points of bench.replay_speculation in real time: `--real`.

    python -m bench.replay_speculation --real [--rate R]        about 20 minutes, a quiet machine

Windows of two minutes of the conversation trace against one real replica and gateway, all at one
rate: `fcfs`, `sloserve` without drafts and by need, in turn, twice, with prompts that say a passage
over and over; then `sloserve` without and by need on the replay's own prompts (random words).
Answers are greedy. First `sloserve profile` measures step times; the rate, unless given, is RATE of
the capacity that the simulator predicts with them for `sloserve` without drafts. Windows are kept
in bench/results/speculation/real/: started again, it goes on where it was. At the end step times
are fitted on what these windows took, and each is simulated with the same arrivals.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
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
PASSAGE = 40
DRAIN_S = 60.0
SAMPLES = 300
DRAFTS = re.compile(
    r'^sloserve_draft_tokens_total\{.*result="(\w+)".*\} ([0-9.e+]+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Played:
    """One window."""

    text: str
    policy: str
    mode: str
    repeat: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.text}-{self.policy}-{self.mode}-{self.repeat}"


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


def windows_of(repeats: int) -> list[Played]:
    """Ways take turns; every second repeat goes the other way round."""
    ways = (("fcfs", "Never"), ("sloserve", "Never"), ("sloserve", "Auto"))
    found: list[Played] = []
    for repeat in range(repeats):
        for policy, mode in ways if repeat % 2 == 0 else ways[::-1]:
            found.append(Played("copying", policy, mode, repeat))
    return [*found, *(Played("trace", policy, mode, 0) for policy, mode in ways[1:])]


def play(args: argparse.Namespace, console: Console) -> int:
    """Measure what is not there yet, simulate the same, and print; the exit code."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    profile = RESULTS / "profile.json"
    if not profile.exists():
        words = ["profile", "--model", "builtin://tiny", "--threads", str(args.threads)]
        words += ["--kv-size", "1Gi", "--output", str(profile)]
        subprocess.run([sys.executable, "-m", "sloserve.cli", *words], check=True)
    rate = args.rate or _rate(profile, args.windows)
    played = windows_of(args.repeats)
    console.print(f"{len(played)} windows of {args.windows:g} s at {rate:g} requests/s")
    for one in played:
        path = RESULTS / f"{one.name}.json"
        key = {"rate": rate, "windows": args.windows, "threads": args.threads} | asdict(one)
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["key"] == key:
            continue
        result = asyncio.run(_window(one, args, rate=rate, profile=profile))
        write_json(path, {"key": key, "made": provenance()} | result)
        console.print(_line(one, result), highlight=False)
    _simulate(played, args, rate=rate, quick=profile)
    lines = table([(one, json.loads((RESULTS / f"{one.name}.json").read_text())) for one in played])
    (RESULTS / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


def table(played: Sequence[tuple[Played, dict[str, Any]]]) -> list[str]:
    """Every window, measured and simulated."""
    classes = sorted(name for name in played[0][1]["measured"]["classes"] if name != ALL)
    lines = [
        "| prompts | policy, speculation | kept | simulated | goodput | "
        + " | ".join(f"{name}: goodput" for name in classes)
        + " | drafts right | tokens/s | TPOT p50, ms | the client |",
        "| --- " * (len(classes) + 9) + "|",
    ]
    for one, result in played:
        rows = result["measured"]["classes"]
        row, drafts = rows[ALL], result["drafts"]
        drafted = drafts["accepted"] + drafts["rejected"]
        simulated = result.get("simulated")
        cells = [
            one.text,
            f"{one.policy}, {one.mode}",
            f"{row['attainment']:.1%}",
            "-" if simulated is None else f"{simulated['classes'][ALL]['attainment']:.1%}",
            f"{row['goodput']:.2f}",
            *(f"{rows[name]['goodput']:.2f}" if name in rows else "-" for name in classes),
            f"{drafts['accepted'] / drafted:.2f} of {drafted}" if drafted else "",
            f"{row['output_rate']:.0f}",
            "-" if row["tpot"]["p50"] is None else f"{row['tpot']['p50'] * 1000:.1f}",
            result["measured"]["facts"]["client"]["bottleneck"] or "kept up",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _setting(policy: str) -> str:
    """The policy with its best setting, as the replay found it."""
    plans = load_plans(REPLAY / "plan.json")
    return next(p.setting for p in plans if (p.load, p.policy) == (LOAD, policy))


def _rate(profile: Path, windows_s: float) -> float:
    scenario = scenario_of(
        LOAD,
        manifest=TARGETS,
        profile=load_profile(str(profile)),
        host=load_host(REPLAY / "host-served.json"),
        duration_s=windows_s,
    )
    found = find_capacity(
        with_setting(scenario, "sloserve"), target=TARGET, tolerance=0.05, start=3.0, repeats=2
    )
    return round(RATE * found.rate, 2)


async def _window(
    one: Played, args: argparse.Namespace, *, rate: float, profile: Path
) -> dict[str, Any]:
    spec = read_service(TARGETS)
    classes = {c.name: c for c in spec.classes}
    options = options_of(LOAD, spec=spec, duration_s=args.windows)
    trace = options.prepare(classes, default_class=spec.default_class)
    load = options.window(trace, rate=rate, repeat=one.repeat)
    async with serving(
        TARGETS,
        policy=_setting(one.policy),
        profile=profile,
        threads=args.threads,
        log=RESULTS / "logs" / f"{one.name}.log",
        more=("--speculation", one.mode),
    ) as service:
        endpoint = Endpoint(service.url, spec.model.served_name)
        prompts = await examine(service.session, endpoint, seed=options.seed)
        if one.text == "copying":
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
    window = Window(
        rate=len(load) / load.duration_s,
        duration_s=load.duration_s,
        policy=f"{one.policy}, {one.mode}",
        classes=summarise(
            [judge(r) for r in records], duration_s=load.duration_s, targets=targets_of(classes)
        ),
        notes=load.notes,
        facts={"client": health.to_dict()},
    )
    samples = [sample for step in steps if (sample := sample_of_step(step)) is not None]
    return {
        "measured": window.to_dict(),
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
    played: Sequence[Played], args: argparse.Namespace, *, rate: float, quick: Path
) -> None:
    """Every window with the step times of all, and drafts as they were recorded."""
    paths = [RESULTS / f"{one.name}.json" for one in played]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    spells = [[Sample(*row) for row in result["steps"]] for result in results]
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
    for one, path, result in zip(played, paths, results, strict=True):
        settings = scenario.settings
        if one.mode == "Auto":
            acceptance = read_acceptance(ACCEPTANCE / f"{one.text}-0.json")
            settings = replace(settings, acceptance=acceptance, propose_s=PROPOSE_US * 1e-6)
        setting = with_setting(replace(scenario, settings=settings), _setting(one.policy))
        window = setting.window(rate, repeat=one.repeat)
        write_json(path, result | {"simulated": window.to_dict()})


def _line(one: Played, result: dict[str, Any]) -> str:
    row = result["measured"]["classes"][ALL]
    return f"{one.name}: {row['attainment']:.1%} kept, goodput {row['goodput']:.2f}"
