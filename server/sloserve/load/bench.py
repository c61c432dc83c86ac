"""`sloserve bench`: load an endpoint, judge what came back, find the highest rate that holds."""

import argparse
import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sloserve.errors import BadInput
from sloserve.load.client import run_load
from sloserve.load.endpoint import Endpoint, Prompts, examine, find_model
from sloserve.load.inline import classes_from_service, parse_class
from sloserve.load.options import (
    LoadOptions,
    add_load_arguments,
    add_sweep_arguments,
    api_key,
    load_options,
    read_service,
    targets_of,
)
from sloserve.load.records import judge
from sloserve.load.report import Capacity, Report, Window, window_from_dict, write_json
from sloserve.load.summary import summarise
from sloserve.load.sweep import Search
from sloserve.load.tables import plain_window, print_capacities, print_window
from sloserve.load.trace import Trace
from sloserve.slo import SloClass


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sloserve bench`."""
    target = parser.add_argument_group("endpoint")
    target.add_argument(
        "--url", default="http://127.0.0.1:8080/v1", help="OpenAI base URL (default %(default)s)"
    )
    target.add_argument("--model", help="model name (default: the first one listed)")
    target.add_argument("--api-key", help="bearer key (default: $OPENAI_API_KEY)")
    target.add_argument(
        "-f",
        "--file",
        type=Path,
        help="SLOService manifest with the classes (default: ask /v1/slo)",
    )
    target.add_argument(
        "--class",
        dest="inline",
        action="append",
        default=[],
        metavar="NAME:ttft=1s,tpot=50ms",
        help="a class, for endpoints that have none; repeatable",
    )
    target.add_argument("--label", default="", help="name of what is measured, e.g. its policy")
    target.add_argument(
        "--drain", type=float, default=120.0, help="seconds to wait for the last answers"
    )
    add_load_arguments(parser)
    add_sweep_arguments(parser, tolerance=0.05)
    parser.add_argument(
        "--resume", action="store_true", help="keep the windows that --json FILE already holds"
    )


def run_bench(args: argparse.Namespace) -> int:
    """Run it; the exit code. Raises BadInput for what can't be done."""
    return asyncio.run(_bench(args))


@dataclass(slots=True)
class _Run:
    """One command: what is loaded, and the windows so far."""

    session: aiohttp.ClientSession
    endpoint: Endpoint
    prompts: Prompts
    classes: Mapping[str, SloClass]
    options: LoadOptions
    trace: Trace
    label: str
    drain_s: float
    console: Console
    plain: bool
    json_path: Path | None
    settings: dict[str, Any]
    windows: list[Window]

    async def window(self, rate: float, repeat: int) -> Window:
        """The window at this rate, from an earlier run of the same command or measured now."""
        for window in self.windows:
            if window.facts["key"] == [rate, repeat]:
                return window
        load = self.options.window(self.trace, rate=rate, repeat=repeat)
        if not load.arrivals:
            raise BadInput(f"no request falls into a window at {rate:g}/s", field="--duration")
        with _progress(self.console) as progress:
            bar = progress.add_task(f"{rate:.3g} requests/s", total=len(load))
            records, health = await run_load(
                self.session,
                self.endpoint,
                load,
                prompts=self.prompts,
                classes=self.classes,
                drain_s=self.drain_s,
                on_end=lambda _: progress.advance(bar),
            )
        notes = load.notes
        if health.bottleneck:
            notes = (*notes, f"the client was the bottleneck: {health.bottleneck}")
        window = Window(
            rate=len(load) / load.duration_s,
            duration_s=load.duration_s,
            policy=self.label,
            classes=summarise(
                [judge(record) for record in records],
                duration_s=load.duration_s,
                targets=targets_of({n: c for n, c in self.classes.items() if n}),
            ),
            notes=notes,
            facts={"key": [rate, repeat], "client": health.to_dict()},
        )
        self.windows.append(window)
        self.save(())
        self.show(window)
        return window

    def show(self, window: Window) -> None:
        """Print a window."""
        title = f"{self.trace.name} at {window.rate:.3g} requests/s for {window.duration_s:.0f} s"
        if self.plain:
            text = plain_window(window, title=title)
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print_window(self.console, window, title=title)

    def save(self, capacities: tuple[Capacity, ...]) -> None:
        """Write the JSON report as it stands."""
        if self.json_path:
            report = Report("bench", self.settings, tuple(self.windows), capacities)
            write_json(self.json_path, report.to_dict())


async def _bench(args: argparse.Namespace) -> int:
    console = Console()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        run = await _start(args, session, console)
        capacities: tuple[Capacity, ...] = ()
        if args.sweep:
            capacities = (await _sweep(run, args),)
            print_capacities(console, capacities)
        else:
            for repeat in range(run.options.repeats):
                for rate in run.options.rates or (run.trace.rate,):
                    await run.window(rate, repeat)
        run.save(capacities)
    if args.png:
        from sloserve.load.plot import plot_windows  # matplotlib takes a second to load

        plot_windows(args.png, run.windows, title=_title(run), target=args.target)
    return 0


async def _start(
    args: argparse.Namespace, session: aiohttp.ClientSession, console: Console
) -> _Run:
    url = args.url.rstrip("/")
    key = api_key(args.api_key)
    spec = read_service(args.file) if args.file else None
    if args.inline:
        classes = {c.name: c for c in map(parse_class, args.inline)}
        default = next(iter(classes))
    elif spec:
        classes, default = {c.name: c for c in spec.classes}, spec.default_class
    else:
        classes, default = await classes_from_service(session, Endpoint(url, "", key))
    model = args.model or (spec.model.served_name if spec else await find_model(session, url, key))
    endpoint = Endpoint(url, model, key)
    options = load_options(args, max_total_tokens=spec.model.max_model_len if spec else None)
    trace = options.prepare(classes, default_class=default)
    settings = {
        "load": options.to_dict(),
        "url": url,
        "model": model,
        "label": args.label,
        "classes": {n: [c.ttft.target_s, [s.tpot_s for s in c.stages]] for n, c in classes.items()},
        "sweep": [args.target, args.tolerance] if args.sweep else None,
    }
    windows = _earlier(args.json, settings) if args.resume else []
    prompts = await examine(session, endpoint, seed=args.seed)
    if not prompts.exact_length:
        console.print("the endpoint does not know ignore_eos: answers end where its model ends")
    return _Run(
        session=session,
        endpoint=endpoint,
        prompts=prompts,
        classes=classes,
        options=options,
        trace=trace,
        label=args.label,
        drain_s=args.drain,
        console=console,
        plain=args.plain,
        json_path=args.json,
        settings=settings,
        windows=windows,
    )


async def _sweep(run: _Run, args: argparse.Namespace) -> Capacity:
    start = run.options.rates[0] if run.options.rates else run.trace.rate
    search = Search(start, target=args.target, tolerance=args.tolerance)
    while (rate := search.next_rate()) is not None:
        repeat = sum(tried == rate for tried, _ in search.tried)
        window = await run.window(rate, repeat)
        search.tell(rate, window.all.attainment)
    return Capacity(
        run.label or "endpoint", args.target, search.rate, tuple(search.tried), search.confirmed
    )


def _earlier(path: Path | None, settings: dict[str, Any]) -> list[Window]:
    if path is None:
        raise BadInput("needs --json FILE, where the windows are kept", field="--resume")
    if not path.exists():
        return []
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("settings") != json.loads(json.dumps(settings)):
        raise BadInput(
            f"{path} holds a run with other settings; name another file or leave out --resume",
            field="--resume",
        )
    return [window_from_dict(window) for window in raw["windows"]]


def _title(run: _Run) -> str:
    return f"{run.trace.name}, {run.label or run.endpoint.model}"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
