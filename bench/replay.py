"""
The headline experiment: a public trace against one replica, measured and simulated.

    python -m bench.replay [--loads conversation,mix] [--windows 120] [--repeats 2]

First the step times of a serving replica are fitted (bench/replay_calibrate.py). For each load
and policy the simulator picks the policy's best setting and predicts its capacity
(90 % of the requests keep every promise). Then windows of `--windows` seconds are measured at
four rates around it, policies in turn, each on a fresh replica (builtin://tiny) and gateway over
HTTP. Every window is scored by the client and compared with the gateway's counters, and kept in
bench/results/replay/: an interrupted run goes on where it was. When all are measured, the step
times are fitted again on what these very windows took, and each is simulated with the same
arrivals. The last lines are a table and, beside the JSON, attainment.png and summary.md.

The machine should have nothing else to do. With the defaults it takes about 100 minutes.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.replay_calibrate import (
    Host,
    calibrate,
    load_host,
    sample_of_step,
    thinned,
    write_fit,
)
from bench.replay_plan import (
    GRID,
    LOADS,
    Planned,
    load_plans,
    options_of,
    plan,
    save_plans,
    scenario_of,
    with_setting,
)
from bench.replay_service import serving, since
from bench.replay_summary import summarise_run
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sloserve.load.client import run_load
from sloserve.load.endpoint import Endpoint, examine
from sloserve.load.options import read_service, targets_of
from sloserve.load.records import judge
from sloserve.load.report import Window, provenance, write_json
from sloserve.load.summary import ALL, summarise
from sloserve.perf import Profile, Sample, load_profile

HERE = Path(__file__).parent
QUICK_PROFILE, PROFILE, HOST = "profile-idle.json", "profile.json", "host.json"
SERVED_PROFILE, SERVED_HOST = "profile-served.json", "host-served.json"
WINDOW_SAMPLES = 300
TENTH = 0.1
TENTH_KEPT = 0.95
DRAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Task:
    """One window to measure."""

    planned: Planned
    rate: float
    repeat: int

    @property
    def name(self) -> str:
        """Of its file."""
        p = self.planned
        return f"{p.load}-{p.policy}-{self.rate:.3f}-{self.repeat}"


def main() -> int:
    """Run it; the exit code."""
    args = _arguments()
    console = Console()
    folder: Path = args.results
    _calibrate(args, folder)
    profile_path = folder / PROFILE
    plans = _plans(args, console, profile_path)
    if args.check:
        return _check(args, console, profile_path, plans)
    tasks = list(_tasks(plans, repeats=args.repeats))
    with _progress(console) as progress:
        bar = progress.add_task("windows", total=len(tasks))
        for task in tasks:
            progress.update(bar, description=task.name)
            path = folder / f"{task.name}.json"
            if not _measured(path, args, task):
                result = asyncio.run(_window(args, task, profile_path))
                write_json(path, result)
                console.print(_line(result), highlight=False)
            progress.advance(bar)
    _simulate_all(args, console, tasks)
    summarise_run(folder, plans, console=console)
    return 0


async def _window(args: argparse.Namespace, task: Task, profile_path: Path) -> dict[str, Any]:
    """Measure one window."""
    spec = read_service(args.targets)
    classes = {c.name: c for c in spec.classes}
    options = options_of(task.planned.load, spec=spec, duration_s=args.windows)
    trace = options.prepare(classes, default_class=spec.default_class)
    load = options.window(trace, rate=task.rate, repeat=task.repeat)
    async with serving(
        args.targets,
        policy=task.planned.setting,
        profile=profile_path,
        threads=args.threads,
        log=args.results / "logs" / f"{task.name}.log",
    ) as service:
        endpoint = Endpoint(service.url, spec.model.served_name)
        prompts = await examine(service.session, endpoint, seed=options.seed)
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
    window = Window(
        rate=len(load) / load.duration_s,
        duration_s=load.duration_s,
        policy=task.planned.policy,
        classes=summarise(
            [judge(r) for r in records], duration_s=load.duration_s, targets=targets_of(classes)
        ),
        notes=load.notes,
        facts={"client": health.to_dict()},
    )
    return {
        "key": _key(args, task),
        "made": provenance(),
        "measured": window.to_dict(),
        "gateway": {name: asdict(count) for name, count in counted.items()},
        "steps": [astuple(sample) for sample in _samples(steps)],
    }


def _samples(steps: Sequence[dict[str, Any]]) -> list[Sample]:
    """Some of a window's latest steps."""
    found = [sample for step in steps if (sample := sample_of_step(step)) is not None]
    return thinned(found, most=WINDOW_SAMPLES)


def _simulate_all(args: argparse.Namespace, console: Console, tasks: Sequence[Task]) -> None:
    """Simulate every measured window with the step times of all; on all cores: nothing is timed."""
    folder: Path = args.results
    paths = [folder / f"{task.name}.json" for task in tasks]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    spells = [[Sample(*row) for row in result["steps"]] for result in results]
    way_s = load_host(folder / HOST).way_in_s * 2
    profile_path, host_path = folder / SERVED_PROFILE, folder / SERVED_HOST
    write_fit(
        [sample for spell in spells for sample in spell],
        spells,
        [way_s],
        quick=folder / QUICK_PROFILE,
        profile_path=profile_path,
        host_path=host_path,
    )
    profile, host = load_profile(profile_path), load_host(host_path)
    with ProcessPoolExecutor() as pool, _progress(console) as progress:
        bar = progress.add_task("simulating", total=len(tasks))
        one = partial(_simulated, args.targets, args.windows, profile, host)
        windows = pool.map(one, tasks)
        for path, result, window in zip(paths, results, windows, strict=True):
            write_json(path, result | {"simulated": window})
            progress.advance(bar)


def _simulated(
    targets: Path, duration_s: float, profile: Profile, host: Host, task: Task
) -> dict[str, Any]:
    """The window of a task on the virtual clock."""
    load = task.planned.load
    scenario = scenario_of(
        load, manifest=targets, profile=profile, host=host, duration_s=duration_s
    )
    window = with_setting(scenario, task.planned.setting).window(task.rate, repeat=task.repeat)
    return replace(window, policy=task.planned.policy).to_dict()


def _plans(args: argparse.Namespace, console: Console, profile_path: Path) -> list[Planned]:
    """Predicted capacities, from the file or computed now; the file grows with each."""
    path = args.results / "plan.json"
    plans = load_plans(path)
    profile = load_profile(profile_path)
    with _progress(console) as progress:
        wanted = [(load, policy) for load in args.loads for policy in args.policies]
        bar = progress.add_task("predicting", total=len(wanted))
        for load, policy in wanted:
            progress.update(bar, description=f"predicting {policy} on {load}")
            if not any((p.load, p.policy) == (load, policy) for p in plans):
                scenario = scenario_of(
                    load,
                    manifest=args.targets,
                    profile=profile,
                    host=load_host(args.results / HOST),
                    duration_s=args.windows,
                )
                plans.append(plan(scenario, load, policy, repeats=args.repeats))
                save_plans(path, plans, made=provenance())
            progress.advance(bar)
    chosen = [p for p in plans if p.load in args.loads and p.policy in args.policies]
    for p in chosen:
        console.print(f"{p.load}: {p.setting} is predicted to hold {p.capacity:.3g} requests/s")
    return chosen


def _check(
    args: argparse.Namespace, console: Console, profile_path: Path, plans: list[Planned]
) -> int:
    """Whether every policy keeps nearly everything at a tenth of the load; simulated."""
    failed = False
    for load in args.loads:
        scenario = scenario_of(
            load,
            manifest=args.targets,
            profile=load_profile(profile_path),
            host=load_host(args.results / HOST),
            duration_s=3600.0,
        )
        rate = TENTH * max(p.capacity for p in plans if p.load == load)
        for p in (p for p in plans if p.load == load):
            row = with_setting(scenario, p.setting).window(rate).classes[ALL]
            failed = failed or row.attainment < TENTH_KEPT
            console.print(f"{load}, {p.setting}: {row.attainment:.1%} kept at {rate:.3g}/s")
    return int(failed)


def _tasks(plans: list[Planned], *, repeats: int) -> Iterator[Task]:
    """Policies alternate within a rate; every second repeat goes the other way round."""
    loads = list(dict.fromkeys(p.load for p in plans))
    for repeat in range(repeats):
        for load in loads:
            own = [p for p in plans if p.load == load]
            for number in range(max(len(p.rates) for p in own)):
                for p in own if repeat % 2 == 0 else reversed(own):
                    if number < len(p.rates):
                        yield Task(p, p.rates[number], repeat)


def _key(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What must be equal for an earlier window to stand for this one."""
    return {
        "setting": task.planned.setting,
        "rate": task.rate,
        "repeat": task.repeat,
        "windows": args.windows,
        "threads": args.threads,
        "targets": args.targets.read_text(encoding="utf-8"),
    }


def _measured(path: Path, args: argparse.Namespace, task: Task) -> bool:
    with contextlib.suppress(FileNotFoundError):
        found: bool = json.loads(path.read_text(encoding="utf-8"))["key"] == _key(args, task)
        return found
    return False


def _line(result: dict[str, Any]) -> str:
    measured = result["measured"]
    row = measured["classes"][ALL]
    text = f"{measured['policy']} at {measured['rate']:.3g}/s: {row['attainment']:.1%} kept"
    return text + (f"; {why}" if (why := measured["facts"]["client"]["bottleneck"]) else "")


def _calibrate(args: argparse.Namespace, folder: Path) -> None:
    """Profile and host of this machine, measured unless they are there."""
    quick, profile, host = (folder / name for name in (QUICK_PROFILE, PROFILE, HOST))
    folder.mkdir(parents=True, exist_ok=True)
    if not quick.exists():
        words = ["profile", "--model", "builtin://tiny", "--threads", str(args.threads), "--full"]
        words += ["--kv-size", "1Gi", "--output", str(quick)]
        subprocess.run([sys.executable, "-m", "sloserve.cli", *words], check=True)
    if not profile.exists() or not host.exists():
        asyncio.run(
            calibrate(
                args.targets,
                quick=quick,
                profile_path=profile,
                host_path=host,
                threads=args.threads,
                log=folder / "logs" / "calibrate.log",
            )
        )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _arguments() -> argparse.Namespace:
    def names(known: dict[str, Any]) -> Any:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            if not set(chosen) <= set(known):
                raise argparse.ArgumentTypeError(f"known: {', '.join(known)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", type=names(LOADS), default=list(LOADS), metavar="NAME,...")
    parser.add_argument("--policies", type=names(GRID), default=list(GRID), metavar="NAME,...")
    parser.add_argument("--windows", type=float, default=120.0, help="seconds each (120)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of the forward pass (1)")
    parser.add_argument("--targets", type=Path, default=HERE / "targets.yaml")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "replay")
    parser.add_argument("--check", action="store_true", help="only simulate a tenth of the load")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
