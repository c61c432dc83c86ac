"""`sloserve simulate`: the service on a virtual clock."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sloserve.errors import BadInput
from sloserve.load.options import (
    add_load_arguments,
    add_sweep_arguments,
    load_options,
    read_service,
)
from sloserve.load.report import Capacity, Report, Window, write_json
from sloserve.load.tables import plain_window, print_capacities, print_window
from sloserve.perf import Profile, load_profile
from sloserve.planner.policies import POLICIES, parse_policy
from sloserve.routing import ROUTERS
from sloserve.simulate.drafts import add_draft_arguments, drafts_of
from sloserve.simulate.run import Scenario, find_capacity
from sloserve.simulate.settings import Lengths, SimSettings
from sloserve.simulate.truth import EXACT, TruthSpec
from sloserve.slo.service import ServiceSpec

DEFAULT_MAX_LEN = 2048
KV_TOKENS = 131_072
"""Size of a KV cache nobody named."""
BLOCK_SIZE = 16
TRUTH_RANGES = {
    "bias": (-0.9, 10.0),
    "noise": (0.0, 10.0),
    "stragglers": (0.0, 1.0),
    "drift": (0.0, 10.0),
    "drift_s": (0.001, 1e6),
}


def add_simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sloserve simulate`."""
    parser.add_argument(
        "-f", "--file", type=Path, required=True, help="SLOService manifest: classes, replicas"
    )
    service = parser.add_argument_group("service")
    service.add_argument(
        "--policy",
        default="sloserve",
        metavar="NAME[:KEY=NUMBER,...][ NAME...]",
        help=f"policies, separated by blanks: {', '.join(POLICIES)} (default %(default)s)",
    )
    service.add_argument(
        "--profile", help="step-time profile: a file or a name (default: that of builtin://sim)"
    )
    service.add_argument("--replicas", type=int, help="default: the manifest's")
    service.add_argument("--router", choices=ROUTERS, default="sloserve")
    service.add_argument(
        "--lengths",
        choices=[x.value for x in Lengths],
        default=Lengths.LIMIT.value,
        help="what the planner knows of output lengths: the client's limit (as `sloserve bench`"
        " asks: the true length), nothing but the model's limit, or the truth (default limit)",
    )
    service.add_argument(
        "--overlap", action="store_true", help="plan while a step runs, as replicas on GPUs do"
    )
    add_draft_arguments(service)
    service.add_argument("--kv-tokens", type=int, help="size of a replica's KV cache in tokens")
    truth = parser.add_argument_group("what the planner does not know")
    truth.add_argument("--exact", action="store_true", help="nothing of it")
    truth.add_argument("--bias", type=float, default=0.0, help="0.1: steps take 10 %% longer")
    truth.add_argument("--noise", type=float, default=0.03, help="share, log-normal (0.03)")
    truth.add_argument(
        "--stragglers", type=float, default=0.01, help="share of steps, +50 %% (0.01)"
    )
    truth.add_argument(
        "--drift", type=float, default=0.0, help="share by which steps differ for seconds (0)"
    )
    truth.add_argument(
        "--drift-s", type=float, default=10.0, help="seconds of steps that drift lasts (10)"
    )
    truth.add_argument("--plan-ms", type=float, default=0.0, help="between two steps (0)")
    truth.add_argument("--way-in-ms", type=float, default=0.0, help="client to replica (0)")
    truth.add_argument("--way-out-ms", type=float, default=0.0, help="replica to client (0)")
    add_load_arguments(parser)
    add_sweep_arguments(parser, tolerance=0.02)


def run_simulate(args: argparse.Namespace) -> int:
    """Windows at the rates asked for, or with `--sweep` the capacity, per policy; the exit code."""
    console = Console()
    base = _scenario(args)
    policies = [(text, *parse_policy(text)) for text in args.policy.split()]
    scenarios = {text: base.with_policy(name, params) for text, name, params in policies}
    if args.sweep:
        capacities = _capacities(args, console, scenarios)
        print_capacities(console, capacities)
        _write(args, base, [], capacities)
    else:
        windows = _windows(console, scenarios)
        for window in windows:
            _show(args, console, window, trace=base.trace.name)
        _write(args, base, windows, ())
    return 0


def _windows(console: Console, scenarios: Mapping[str, Scenario]) -> list[Window]:
    first = next(iter(scenarios.values()))
    rates, repeats = first.options.rates or (first.trace.rate,), first.options.repeats
    windows = []
    with _progress(console, len(scenarios) * len(rates) * repeats) as progress:
        bar = progress.tasks[0].id
        for text, scenario in scenarios.items():
            for rate in rates:
                progress.update(bar, description=f"{text} at {rate:.3g}/s")
                for repeat in range(repeats):
                    windows.append(replace(scenario.window(rate, repeat=repeat), policy=text))
                    progress.advance(bar)
    return windows


def _capacities(
    args: argparse.Namespace, console: Console, scenarios: Mapping[str, Scenario]
) -> tuple[Capacity, ...]:
    capacities = []
    with _progress(console, len(scenarios)) as progress:
        bar = progress.tasks[0].id
        for text, scenario in scenarios.items():
            progress.update(bar, description=text)
            options = scenario.options
            found = find_capacity(
                scenario,
                target=args.target,
                tolerance=args.tolerance,
                start=options.rates[0] if options.rates else scenario.trace.rate,
                repeats=options.repeats,
            )
            capacities.append(replace(found, policy=text))
            progress.advance(bar)
    return tuple(capacities)


def _show(args: argparse.Namespace, console: Console, window: Window, *, trace: str) -> None:
    title = f"{trace}, {window.policy} at {window.rate:.3g} requests/s"
    title += f", {window.duration_s:.0f} s simulated at {window.facts['speed']:.0f}x real time"
    if args.plain:
        text = plain_window(window, title=title)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    else:
        print_window(console, window, title=title)


def _scenario(args: argparse.Namespace) -> Scenario:
    spec = read_service(args.file)
    profile = _profile(args, spec)
    drafts = drafts_of(args, spec.engine.speculation, profile=profile)
    max_len = spec.model.max_model_len or DEFAULT_MAX_LEN
    options = load_options(args, max_total_tokens=max_len)
    classes = {c.name: c for c in spec.classes}
    kv_tokens = args.kv_tokens or profile.kv_tokens or KV_TOKENS
    settings = SimSettings(
        policy="sloserve",
        model=profile.step,
        truth=_truth(args),
        lengths=Lengths(args.lengths),
        replicas=args.replicas or spec.replicas,
        router=args.router,
        max_hops=spec.gateway.max_hops,
        block_size=BLOCK_SIZE,
        num_blocks=kv_tokens // BLOCK_SIZE,
        max_running=spec.engine.max_running,
        max_batch_tokens=spec.engine.max_batch_tokens,
        max_model_len=options.max_total_tokens or max_len,
        start_margin_s=profile.p95 * profile.step.step_s(1),
        plan_s=args.plan_ms / 1000,
        overlap=args.overlap,
        acceptance=drafts.acceptance,
        fixed_drafts=drafts.fixed,
        max_drafts=drafts.most,
        draft_model=drafts.by_model,
        propose_s=drafts.propose_s,
        way_in_s=args.way_in_ms / 1000,
        way_out_s=args.way_out_ms / 1000,
        seed=args.seed,
    )
    trace = options.prepare(classes, default_class=spec.default_class)
    return Scenario(trace, options, classes, settings)


def _truth(args: argparse.Namespace) -> TruthSpec:
    if args.exact:
        return EXACT
    for name, (least, most) in TRUTH_RANGES.items():
        value = getattr(args, name)
        if not least <= value <= most:
            raise BadInput(
                f"{value} is not within {least} to {most}", field=f"--{name.replace('_', '-')}"
            )
    return TruthSpec(
        bias=args.bias,
        noise=args.noise,
        straggler_share=args.stragglers,
        drift=args.drift,
        drift_s=args.drift_s,
    )


def _profile(args: argparse.Namespace, spec: ServiceSpec) -> Profile:
    if args.profile:
        return load_profile(args.profile)
    url = urlsplit(spec.model.source)
    named = parse_qs(url.query).get("profile")
    if url.scheme == "builtin" and url.netloc == "sim" and named:
        return load_profile(named[0])
    raise BadInput(
        f"no step times are known for {spec.model.source}: give --profile, a file that"
        " `sloserve profile` wrote or the name of one that ships",
        field="--profile",
    )


def _write(
    args: argparse.Namespace,
    base: Scenario,
    windows: list[Window],
    capacities: tuple[Capacity, ...],
) -> None:
    settings = {
        "load": base.options.to_dict(),
        "service": base.settings.to_dict(),
        "policies": args.policy,
        "classes": {
            n: [c.ttft.target_s, c.ttft.slowdown, [s.tpot_s for s in c.stages]]
            for n, c in base.classes.items()
        },
        "target": args.target,
    }
    report = Report("simulate", settings, tuple(windows), capacities)
    if args.json:
        write_json(args.json, report.to_dict())
    if args.png and windows:
        from sloserve.load.plot import plot_windows  # matplotlib takes a second to load

        title = f"{base.trace.name}, simulated"
        plot_windows(args.png, windows, title=title, target=args.target)


def _progress(console: Console, total: int) -> Progress:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    progress.add_task("simulating", total=total)
    return progress
