"""`sloserve simulate` and `sloserve capacity`: the service on a virtual clock."""

import argparse
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sloserve.errors import BadInput
from sloserve.load.options import add_load_arguments, load_options, read_service
from sloserve.load.report import Capacity, Report, Window, write_json
from sloserve.load.tables import plain_window, print_capacities, print_window
from sloserve.perf import Profile, load_profile
from sloserve.planner.policies import POLICIES
from sloserve.routing import ROUTERS
from sloserve.simulate.run import Scenario, find_capacity
from sloserve.simulate.settings import Lengths, SimSettings
from sloserve.simulate.truth import TruthSpec
from sloserve.slo.service import ServiceSpec

DEFAULT_MAX_LEN = 2048
KV_TOKENS = 131_072
"""Size of a KV cache nobody named."""
BLOCK_SIZE = 16


def add_simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sloserve simulate`."""
    parser.add_argument(
        "-f", "--file", type=Path, required=True, help="SLOService manifest: classes, replicas"
    )
    service = parser.add_argument_group("service")
    service.add_argument(
        "--policy",
        default="sloserve",
        metavar="NAME[:key=value,...][ NAME...]",
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
    service.add_argument("--kv-tokens", type=int, help="size of a replica's KV cache in tokens")
    truth = parser.add_argument_group("what the planner does not know")
    truth.add_argument("--exact", action="store_true", help="no bias, no noise, no stragglers")
    truth.add_argument("--bias", type=float, default=0.0, help="0.1: steps take 10 %% longer")
    truth.add_argument("--noise", type=float, default=0.03, help="share, log-normal (0.03)")
    truth.add_argument(
        "--stragglers", type=float, default=0.01, help="share of steps, +50 %% (0.01)"
    )
    truth.add_argument("--plan-ms", type=float, default=0.0, help="between two steps (0)")
    truth.add_argument("--way-in-ms", type=float, default=0.0, help="client to replica (0)")
    truth.add_argument("--way-out-ms", type=float, default=0.0, help="replica to client (0)")
    add_load_arguments(parser)
    parser.add_argument("--target", type=float, default=0.9, help="strict attainment to hold (0.9)")


def add_capacity_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sloserve capacity`."""
    add_simulate_arguments(parser)
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative step (0.02)")


def run_simulate(args: argparse.Namespace) -> int:
    """Windows at the rates asked for, per policy; the exit code."""
    console = Console()
    base = _scenario(args)
    windows: list[Window] = []
    rates = base.options.rates or (base.trace.rate,)
    policies = _policies(args.policy)
    with _progress(console, len(policies) * len(rates) * base.options.repeats) as progress:
        bar = progress.tasks[0].id
        for name, params in policies:
            scenario = base.with_policy(name, params)
            for rate in rates:
                for repeat in range(base.options.repeats):
                    progress.update(bar, description=f"{name} at {rate:.3g}/s")
                    windows.append(scenario.window(rate, repeat=repeat))
                    progress.advance(bar)
    for window in windows:
        title = f"{base.trace.name}, {window.policy} at {window.rate:.3g} requests/s"
        title += f", {window.duration_s:.0f} s simulated at {window.facts['speed']:.0f}x real time"
        if args.plain:
            console.print(plain_window(window, title=title), highlight=False, markup=False)
        else:
            print_window(console, window, title=title)
    _write(args, "simulate", base, windows, ())
    return 0


def run_capacity(args: argparse.Namespace) -> int:
    """The highest rate that holds, per policy; the exit code."""
    console = Console()
    base = _scenario(args)
    start = base.options.rates[0] if base.options.rates else base.trace.rate
    policies = _policies(args.policy)
    capacities = []
    with _progress(console, len(policies)) as progress:
        bar = progress.tasks[0].id
        for name, params in policies:
            progress.update(bar, description=name)
            capacities.append(
                find_capacity(
                    base.with_policy(name, params),
                    target=args.target,
                    tolerance=args.tolerance,
                    start=start,
                    repeats=base.options.repeats,
                )
            )
            progress.advance(bar)
    print_capacities(console, capacities)
    _write(args, "capacity", base, [], tuple(capacities))
    return 0


def parse_policy(text: str) -> tuple[str, dict[str, float | int]]:
    """A policy and its parameters: `fcfs:chunk_tokens=512`."""
    name, _, rest = text.partition(":")
    params: dict[str, float | int] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            params[key] = _number(value)
        except ValueError:
            raise BadInput(f"{part!r} in {text!r} is not key=number", field="--policy") from None
    if name not in POLICIES:
        raise BadInput(f"{name!r} is not a policy; known: {', '.join(POLICIES)}", field="--policy")
    return name, params


def _policies(text: str) -> list[tuple[str, dict[str, float | int]]]:
    return [parse_policy(part) for part in text.split()]


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _scenario(args: argparse.Namespace) -> Scenario:
    spec = read_service(args.file)
    profile = _profile(args, spec)
    max_len = spec.model.max_model_len or DEFAULT_MAX_LEN
    options = load_options(args, max_total_tokens=max_len)
    classes = {c.name: c for c in spec.classes}
    kv_tokens = args.kv_tokens or profile.kv_tokens or KV_TOKENS
    truth = TruthSpec(bias=args.bias, noise=args.noise, straggler_share=args.stragglers)
    if args.exact:
        truth = replace(truth, bias=0.0, noise=0.0, straggler_share=0.0)
    settings = SimSettings(
        policy="sloserve",
        model=profile.step,
        truth=truth,
        lengths=Lengths(args.lengths),
        replicas=args.replicas or spec.replicas,
        router=args.router,
        max_hops=spec.gateway.max_hops,
        block_size=BLOCK_SIZE,
        num_blocks=kv_tokens // BLOCK_SIZE,
        max_running=spec.engine.max_running,
        max_batch_tokens=spec.engine.max_batch_tokens,
        max_model_len=options.max_total_tokens or max_len,
        plan_s=args.plan_ms / 1000,
        way_in_s=args.way_in_ms / 1000,
        way_out_s=args.way_out_ms / 1000,
        seed=args.seed,
    )
    trace = options.prepare(classes, default_class=spec.default_class)
    return Scenario(trace, options, classes, settings)


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
    kind: str,
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
    report = Report(kind, settings, tuple(windows), capacities)
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
