"""
What speculation does for the capacity of a replica under the trace replay's loads: SIMULATED.

    python -m bench.replay_speculation [--loads conversation,mix] [--texts trace-0,copying-0,...]
                                       [--targets usual|tight] [--machine now|lean|served|replayed]
                                       [--windows 120] [--repeats 2]
    python -m bench.replay_speculation --real          (see bench/replay_speculation_real.py)
    python -m bench.replay_speculation --real --at 2.59 --repeats 4     (see ..._pairs.py)

Each load of bench.replay, its classes and promises, against one simulated replica: `fcfs` without
drafts and with 4 for everyone, `sloserve` without, with 4, and by need. How many drafts are right
is what bench/acceptance.py recorded in answers of the small model, place by place. Rates rise by
12 % until attainment has fallen through 90 %; capacity is where the line between two rates does.
`fcfs` runs at several chunk sizes, the best counts. All meet the same requests. With `--targets
tight` the promises are those of bench/targets-tight.yaml: they bind before the machine is full.

Step times are those of `--machine`: `now` (bench/results/speculation/profile.json: compiled
attention, processor time, `sloserve profile`'s batches), `lean` (the same with lean layers),
`served` (fitted on the usual windows of `--real`, their noise as well) or `replayed` (fitted on the
windows of bench.replay, where this simulator was within 8 % of the measured capacities; attention
was not compiled then, and a draft cost five times as much). Noise, drift and ways are the replay's
but in `served`.
Windows are kept in bench/results/speculation/, those of tight promises in its folder `tight`: what
is there is not simulated again.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.replay_calibrate import load_host
from bench.replay_plan import LOADS, TARGET, scenario_of, with_setting
from bench.replay_speculation_fixed import FIXED
from bench.replay_speculation_summary import summarise
from bench.replay_speculation_targets import (
    ACCEPTANCE,
    REAL,
    REPLAY,
    RESULTS,
    TARGETS,
    Targets,
)
from bench.replay_speculation_ways import WAYS, WINDOW_S
from rich.console import Console

from sloserve.load.report import provenance, write_json
from sloserve.load.sweep import crossing
from sloserve.perf import load_profile
from sloserve.simulate.acceptance import read_acceptance
from sloserve.simulate.drafts import PROPOSE_US
from sloserve.simulate.run import Scenario

MACHINES = {
    "now": (RESULTS / "profile.json", REPLAY / "host-served.json"),
    "lean": (RESULTS / "profile-lean.json", REPLAY / "host-served.json"),
    "served": (REAL / "profile-served.json", REAL / "host-served.json"),
    "replayed": (REPLAY / "profile-served.json", REPLAY / "host-served.json"),
}
"""Step times, and how those of a served replica differ from them."""
TEXTS = ("trace-0", "copying-0", "trace-0.7", "code-0", "copying-0.7", "prose-0")
GROWTH = 1.12
MAX_STEPS = 30
LOWEST = -20
"""Step at the bottom of the ladder, a request in ten seconds: they hardly meet."""


@dataclass(frozen=True, slots=True)
class System:
    """A policy and who gets drafts."""

    name: str
    settings: tuple[str, ...]
    drafts: str  # off, fixed or need


def systems_of(targets: Targets) -> tuple[System, ...]:
    """All that are compared."""
    chunks, wide = (
        tuple(f"fcfs:max_batch_tokens={n}" for n in sizes)
        for sizes in (targets.chunks, targets.wide_chunks)
    )
    return (
        System("fcfs", chunks, "off"),
        System("fcfs, fixed", wide, "fixed"),
        System("sloserve, off", ("sloserve",), "off"),
        System("sloserve, fixed", ("sloserve",), "fixed"),
        System("sloserve, by need", ("sloserve",), "need"),
    )


def rate_of(step: int) -> float:
    """Requests/s on the ladder of rates."""
    return round(GROWTH**step, 4)


class Windows:
    """Simulated windows by name, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["windows"]

    def save(self) -> None:
        """All of them, with what made them."""
        write_json(self._path, {"made": provenance(), "windows": self.rows})

    def of(self, name: str, scenario: Scenario, *, rate: float, repeat: int) -> dict[str, Any]:
        """The window of that name, simulated if it is not there yet."""
        found = self.rows.get(name)
        if found is None:
            window = scenario.window(rate, repeat=repeat)
            found = self.rows[name] = {
                "rate": window.rate,
                "classes": {
                    slo_class: [row.eligible, row.attained, round(row.goodput, 4)]
                    for slo_class, row in window.classes.items()
                },
                "steps": window.facts["steps"],
                "accepted": window.facts["accepted_drafts"],
                "rejected": window.facts["rejected_drafts"],
            }
        return found


@dataclass(frozen=True, slots=True)
class Curve:
    """One system under some promises on one load and text, at one setting."""

    targets: Targets
    machine: str
    load: str
    text: str
    system: System
    setting: str

    def name(self, step: int, repeat: int) -> str:
        """Of a window. Without drafts the text makes no difference."""
        text = "any" if self.system.drafts == "off" else self.text
        return (
            f"{self.machine} {self.load} {text} {self.setting} {self.system.drafts} {step} {repeat}"
        )


def attainment(rows: Sequence[dict[str, Any]]) -> float:
    """Of all requests of some windows."""
    eligible: int = sum(row["classes"]["all"][0] for row in rows)
    attained: int = sum(row["classes"]["all"][1] for row in rows)
    return attained / max(1, eligible)


def walk(
    curve: Curve, scenario: Scenario, windows: Windows, *, repeats: int, first: int
) -> dict[int, list[dict[str, Any]]]:
    """
    Windows by step of the ladder: up or down until the target lies between two of them, or the
    ladder ends.
    """
    points: dict[int, list[dict[str, Any]]] = {}

    def holds(step: int) -> bool:
        points[step] = [
            windows.of(curve.name(step, n), scenario, rate=rate_of(step), repeat=n)
            for n in range(repeats)
        ]
        return attainment(points[step]) >= TARGET

    step = first
    up = holds(step)
    for _ in range(MAX_STEPS if up else step - LOWEST):
        step += 1 if up else -1
        if holds(step) != up:
            break
    if up:  # once more above: a single lucky window does not end a search
        holds(step + 1)
    holds(curve.targets.common[curve.load])
    return points


def capacity(points: dict[int, list[dict[str, Any]]]) -> float | None:
    """
    Requests/s really offered where attainment falls through the target; 0 where it is missed at
    every rate, None where it is missed at none.
    """
    by_rate = {
        sum(row["rate"] for row in rows) / len(rows): attainment(rows) for rows in points.values()
    }
    if all(share < TARGET for share in by_rate.values()):
        return 0.0
    return crossing(by_rate, TARGET)


def curves_of(
    targets: Targets, machine: str, loads: Sequence[str], texts: Sequence[str]
) -> Iterator[Curve]:
    """Every curve, the most telling first."""
    for text in texts:
        for load in loads:
            for system in systems_of(targets):
                for setting in system.settings:
                    yield Curve(targets, machine, load, text, system, setting)


def scenario_for(curve: Curve, *, duration_s: float) -> Scenario:
    """The load against the simulated service with that curve's drafts."""
    profile, host = MACHINES[curve.machine]
    scenario = scenario_of(
        curve.load,
        manifest=curve.targets.manifest,
        profile=load_profile(str(profile)),
        host=load_host(host),
        duration_s=duration_s,
    )
    settings = scenario.settings
    if curve.system.drafts != "off":
        settings = replace(
            settings,
            acceptance=read_acceptance(ACCEPTANCE / f"{curve.text}.json"),
            fixed_drafts=FIXED if curve.system.drafts == "fixed" else None,
            propose_s=PROPOSE_US * 1e-6,
        )
    return with_setting(replace(scenario, settings=settings), curve.setting)


def simulate_all(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Every curve; one entry for each with its capacity and points."""
    targets: Targets = args.targets
    windows = Windows(targets.folder / f"windows-{args.machine}.json")
    found: list[dict[str, Any]] = []
    first: dict[tuple[str, str], int] = {}
    for curve in curves_of(targets, args.machine, args.loads, args.texts):
        scenario = scenario_for(curve, duration_s=args.windows)
        key = (curve.load, curve.system.name)
        points = walk(
            curve,
            scenario,
            windows,
            repeats=args.repeats,
            first=first.get(key, targets.first[curve.setting.partition(":")[0]]),
        )
        windows.save()
        held = [step for step, rows in points.items() if attainment(rows) >= TARGET]
        first[key] = max(held, default=min(points))
        rate = capacity(points)
        found.append(
            {
                "machine": curve.machine,
                "load": curve.load,
                "text": curve.text,
                "system": curve.system.name,
                "setting": curve.setting,
                "capacity": rate,
                "points": {rate_of(step): rows for step, rows in sorted(points.items())},
                "common": rate_of(targets.common[curve.load]),
            }
        )
        shown = "none" if rate is None else f"{rate:.2f}"
        console.print(
            f"{curve.load}, {curve.text}, {curve.system.name}, {curve.setting}: {shown}",
            highlight=False,
        )
    return found


def main() -> int:
    """Simulate, or measure with `--real`; the exit code."""
    args = _arguments()
    console = Console()
    if args.at is not None:
        from bench.replay_speculation_pairs import compare

        return compare(args, console)
    if args.real:
        from bench.replay_speculation_real import play

        return play(args, console)
    curves = simulate_all(args, console)
    summarise(curves, args.targets, machine=args.machine, console=console)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def listed(known: Sequence[str]) -> Any:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            if not set(chosen) <= set(known):
                raise argparse.ArgumentTypeError(f"known: {', '.join(known)}")
            return chosen

        return parse

    def rates(text: str) -> list[float]:
        found = [round(float(part), 2) for part in text.split(",")]  # as files are named
        if not all(0.0 < rate < 1e3 for rate in found):
            raise argparse.ArgumentTypeError("requests/s above 0")
        return found

    parser.add_argument("--loads", type=listed(list(LOADS)), default=list(LOADS))
    parser.add_argument("--texts", type=listed(TEXTS), help="all; copying-0 with --real")
    parser.add_argument("--machine", choices=list(MACHINES), default="now")
    parser.add_argument("--targets", choices=list(TARGETS), default="usual", help="promises")
    parser.add_argument("--windows", type=float, help="seconds each (120, simulated tight: 300)")
    parser.add_argument("--repeats", type=int, help="(2, simulated tight: 4)")
    parser.add_argument("--real", action="store_true", help="measure some of it instead")
    parser.add_argument("--load", choices=list(LOADS), help="conversation (--real)")
    parser.add_argument("--ways", type=listed(WAYS), help=f"some of {','.join(WAYS)} (--real)")
    parser.add_argument("--rates", type=rates, help="measure at these, no search (--real)")
    parser.add_argument("--at", type=float, help="compare drafts at this rate only (--real)")
    parser.add_argument("--threads", type=int, default=1, help="of the forward pass (--real)")
    args = parser.parse_args()
    for name in ("load", "ways", "rates", "at"):
        if getattr(args, name) is not None and not args.real:
            parser.error(f"--{name} is for measured windows: give --real too")
    if args.at is not None and (args.rates or args.ways):
        parser.error("--at compares sloserve without drafts and by need, at one rate")
    args.targets = TARGETS[args.targets]
    args.windows = args.windows or (WINDOW_S if args.real else args.targets.window_s)
    args.repeats = args.repeats or (2 if args.real else args.targets.repeats)
    args.load, args.ways = args.load or "conversation", args.ways or list(WAYS)
    args.texts = args.texts or (["copying-0"] if args.real else list(TEXTS))
    return args


if __name__ == "__main__":
    sys.exit(main())
