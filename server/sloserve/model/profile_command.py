"""The body of `sloserve profile`: load a model, measure its steps, say how good the fit is."""

import argparse
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sloserve.errors import BadInput, NotFound
from sloserve.model.load import load_runner
from sloserve.model.profile import FULL, QUICK, OnProgress, cache_path, measure, profile_key
from sloserve.model.sources import resolve_source
from sloserve.perf import Profile, save_profile
from sloserve.slo.flags import with_flags
from sloserve.slo.manifest import parse_service
from sloserve.slo.service import ServiceSpec
from sloserve.slo.sources import SourceKind, parse_source


def run_profile(args: argparse.Namespace) -> int:
    """
    `sloserve profile [--config FILE] [--model SOURCE] [--output FILE] [--full]`; the exit code.

    Writes to `--output`, or to the cache where replicas look, and prints the error per kind of
    batch. Raises what loading and measuring raise.
    """
    spec = with_flags(_manifest(args.config) if args.config else None, args)
    profile, path = profile_model(spec, output=args.output, full=getattr(args, "full", False))
    print_profile(profile, path)
    return 0


def profile_model(
    spec: ServiceSpec, *, output: Path | None = None, full: bool = False
) -> tuple[Profile, Path]:
    """Measure the model of `spec` on this machine; its profile, and the file that holds it."""
    source = parse_source(spec.model.source, field="model.source")
    if source.kind is SourceKind.SIM:
        raise BadInput(
            f"{spec.model.source} is simulated: its step times are a profile already",
            field="model.source",
        )
    console = Console(stderr=True)
    if source.hint:
        console.print(source.hint, highlight=False)
    path = resolve_source(source, spec.model.revision)
    console.print(f"loading {spec.model.source}", highlight=False)
    runner = load_runner(path, model=spec.model, engine=spec.engine)
    facts = runner.facts
    model, threads = profile_key(spec, facts)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        profile = measure(
            runner,
            model=model,
            threads=threads,
            grid=FULL if full else QUICK,
            on_progress=_shown(progress),
        )
    runner.close()
    target = output or cache_path(facts, model=model, threads=threads)
    save_profile(profile, target)
    return profile, target


def print_profile(profile: Profile, path: Path) -> None:
    """What was found, for a person."""
    step = profile.step
    console = Console(file=sys.stdout)
    console.print(
        f"{profile.model}, {profile.dtype} on {profile.hardware}\n"
        f"  one decode at 256 tokens  {1e3 * step.step_s(1, context=256):8.2f} ms\n"
        f"  32 decodes at 256 tokens  {1e3 * step.step_s(32, context=32 * 256):8.2f} ms\n"
        f"  a prompt of 1,000 tokens  {1e3 * step.prefill_s(1000):8.2f} ms",
        highlight=False,
    )
    table = Table("batches", "measured", "off by, mean", "off by, 95 of 100 within")
    for kind, error in profile.by_kind.items():
        table.add_row(kind, str(error.num_samples), f"{error.mape:.1%}", f"{error.p95:.1%}")
    total = sum(error.num_samples for error in profile.by_kind.values())
    table.add_row("all", str(total), f"{profile.mape:.1%}", f"{profile.p95:.1%}")
    console.print(table)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _shown(progress: Progress) -> OnProgress:
    task = progress.add_task("measuring", total=None)

    def show(done: int, total: int, what: str) -> None:
        progress.update(task, completed=done, total=total, description=f"measuring {what}")

    return show


def _manifest(path: Path) -> ServiceSpec:
    try:
        return parse_service(yaml.safe_load(path.read_text("utf-8")))
    except FileNotFoundError:
        raise NotFound(f"there is no manifest '{path}'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"can't be read: {error}", field=str(path)) from error
    except yaml.YAMLError as error:
        raise BadInput(f"is not YAML: {error}", field=str(path)) from error
