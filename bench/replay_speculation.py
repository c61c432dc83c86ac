"""
What speculation does for the capacity of a replica under the trace replay's loads: SIMULATED.

    python -m bench.replay_speculation [--loads conversation,mix] [--texts trace-0,copying-0,...]
                                       [--windows 120] [--repeats 2] [--machine now|replayed]
    python -m bench.replay_speculation --real          (see bench/replay_speculation_real.py)
    python -m bench.replay_speculation --real --at 2.59 --repeats 4     (see ..._pairs.py)

Each load of bench.replay, its classes and promises, against one simulated replica: `fcfs` without
drafts and with 4 for everyone, `sloserve` without, with 4, and by need. How many drafts are right
is what bench/acceptance.py recorded in answers of the small model, place by place. Rates rise by
12 % until attainment has fallen through 90 %; capacity is where the line between two rates does.
`fcfs` runs at every chunk size of CHUNKS, the best counts. All meet the same requests.

Step times are those of `--machine`: `now` (bench/results/speculation/profile.json: compiled
attention, processor time, `sloserve profile`'s batches) or `replayed` (fitted on the windows of
bench.replay, where this simulator was within 8 % of the measured capacities; attention was not
compiled then, and a draft cost five times as much). Noise, drift and ways are the replay's in both.
Windows are kept in bench/results/speculation/: what is there is not simulated again.
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
from bench.replay_speculation_summary import summarise
from rich.console import Console

from sloserve.load.report import provenance, write_json
from sloserve.load.sweep import crossing
from sloserve.perf import load_profile
from sloserve.simulate.acceptance import read_acceptance
from sloserve.simulate.drafts import PROPOSE_US
from sloserve.simulate.run import Scenario

HERE = Path(__file__).parent
REPLAY = HERE / "results" / "replay"
RESULTS = HERE / "results" / "speculation"
ACCEPTANCE = HERE / "acceptance"
FIXED = 4
PROFILES = {"now": RESULTS / "profile.json", "replayed": REPLAY / "profile-served.json"}
TEXTS = ("trace-0", "copying-0", "trace-0.7", "code-0", "copying-0.7", "prose-0")
CHUNKS = (128, 256, 512)
WIDE_CHUNKS = (256, 512)
"""Where drafts share the budget."""
GROWTH = 1.12
FIRST = {"fcfs": 8, "sloserve": 13}
"""Step on the ladder of rates where the search begins, by policy."""
MAX_STEPS = 30
COMMON = {"conversation": 13, "mix": 13}
"""Where the goodput of all is compared: a rate that is too much for `fcfs`."""


@dataclass(frozen=True, slots=True)
class System:
    """A policy and who gets drafts."""

    name: str
    settings: tuple[str, ...]
    drafts: str  # off, fixed or need


SYSTEMS = (
    System("fcfs", tuple(f"fcfs:max_batch_tokens={n}" for n in CHUNKS), "off"),
    System("fcfs, fixed", tuple(f"fcfs:max_batch_tokens={n}" for n in WIDE_CHUNKS), "fixed"),
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
    """One system on one load and text, at one setting."""

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
    """Windows by step of the ladder: up or down until the target lies between two of them."""
    points: dict[int, list[dict[str, Any]]] = {}

    def holds(step: int) -> bool:
        points[step] = [
            windows.of(curve.name(step, n), scenario, rate=rate_of(step), repeat=n)
            for n in range(repeats)
        ]
        return attainment(points[step]) >= TARGET

    step = first
    up = holds(step)
    for _ in range(MAX_STEPS):
        step += 1 if up else -1
        if holds(step) != up:
            break
    if up:  # once more above: a single lucky window does not end a search
        holds(step + 1)
    holds(COMMON[curve.load])
    return points


def capacity(points: dict[int, list[dict[str, Any]]]) -> float | None:
    """Requests/s really offered where attainment falls through the target."""
    by_rate = {
        sum(row["rate"] for row in rows) / len(rows): attainment(rows) for rows in points.values()
    }
    return crossing(by_rate, TARGET)


def curves_of(machine: str, loads: Sequence[str], texts: Sequence[str]) -> Iterator[Curve]:
    """Every curve, the most telling first."""
    for text in texts:
        for load in loads:
            for system in SYSTEMS:
                for setting in system.settings:
                    yield Curve(machine, load, text, system, setting)


def scenario_for(curve: Curve, *, duration_s: float) -> Scenario:
    """The load against the simulated service with that curve's drafts."""
    scenario = scenario_of(
        curve.load,
        manifest=HERE / "targets.yaml",
        profile=load_profile(str(PROFILES[curve.machine])),
        host=load_host(REPLAY / "host-served.json"),
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
    windows = Windows(RESULTS / f"windows-{args.machine}.json")
    found: list[dict[str, Any]] = []
    first: dict[tuple[str, str], int] = {}
    for curve in curves_of(args.machine, args.loads, args.texts):
        scenario = scenario_for(curve, duration_s=args.windows)
        key = (curve.load, curve.system.name)
        points = walk(
            curve,
            scenario,
            windows,
            repeats=args.repeats,
            first=first.get(key, FIRST[curve.setting.partition(":")[0]]),
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
                "common": rate_of(COMMON[curve.load]),
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
    summarise(curves, RESULTS, machine=args.machine, console=console)
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

    parser.add_argument("--loads", type=listed(list(LOADS)), default=list(LOADS))
    parser.add_argument("--texts", type=listed(TEXTS), help="all; copying-0 with --real")
    parser.add_argument("--machine", choices=list(PROFILES), default="now")
    parser.add_argument("--windows", type=float, default=120.0, help="seconds each (120)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--real", action="store_true", help="measure some of it instead")
    parser.add_argument("--at", type=float, help="compare drafts at this rate only (--real)")
    parser.add_argument("--threads", type=int, default=1, help="of the forward pass (--real)")
    args = parser.parse_args()
    if args.at is not None and not args.real:
        parser.error("--at compares measured windows: give --real too")
    args.texts = args.texts or (["copying-0"] if args.real else list(TEXTS))
    return args


if __name__ == "__main__":
    sys.exit(main())
