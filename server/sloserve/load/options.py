"""What `bench`, `simulate` and `capacity` are told about load: arguments, and the windows of it."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sloserve.errors import BadInput
from sloserve.load.builtin import MIX, SLICES, load_trace
from sloserve.load.summary import Target
from sloserve.load.trace import Trace, parse_shares
from sloserve.slo import SloClass
from sloserve.slo.manifest import parse_service
from sloserve.slo.service import ServiceSpec


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """A load, before it is brought to a rate."""

    trace: str
    shares: Mapping[str, Mapping[str, float]]
    max_total_tokens: int | None
    cut: bool
    seed: int
    duration_s: float | None  # of one window; None: the whole trace
    rates: tuple[float, ...]  # requests/s; none: the trace's own
    repeats: int

    def prepare(self, classes: Mapping[str, SloClass], *, default_class: str) -> Trace:
        """
        The trace with a known class on every row; raises BadInput for an unknown one.

        Classes are drawn before time is stretched: a request keeps its class at every rate.
        """
        trace = load_trace(
            self.trace, max_total_tokens=self.max_total_tokens, cut=self.cut, seed=self.seed
        )
        shares = {label: dict(chances) for label, chances in self.shares.items()}
        named = {name for chances in shares.values() for name in chances}
        labels = {label for label in trace.classes() if label not in shares and "" not in shares}
        if not shares and labels.isdisjoint(classes):  # nobody said who is of which class
            shares[""] = {default_class: 1.0}
            labels = set()
        unknown = (named | labels) - set(classes) - {""}
        if unknown:
            raise BadInput(
                f"unknown class {', '.join(sorted(unknown))}; there are"
                f" {', '.join(sorted(classes))}. Give the trace's labels classes, e.g."
                f" --shares {sorted(unknown)[0]}:{sorted(classes)[0]}=1",
                field="--shares",
            )
        return trace.classed(shares | {"": shares.get("", {default_class: 1.0})}, seed=self.seed)

    def window(self, trace: Trace, *, rate: float, repeat: int) -> Trace:
        """Window number `repeat` of the trace at `rate`: each repeat takes the next stretch."""
        stretched = trace.at_rate(rate)
        if self.duration_s is None:
            return stretched
        return stretched.window(repeat * self.duration_s, self.duration_s)

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it."""
        return {
            "trace": self.trace,
            "shares": {label: dict(chances) for label, chances in self.shares.items()},
            "max_total_tokens": self.max_total_tokens,
            "cut": self.cut,
            "seed": self.seed,
            "duration_s": self.duration_s,
            "rates": list(self.rates),
            "repeats": self.repeats,
        }


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `load_options` reads."""
    names = ", ".join(f"builtin:{name}" for name in [*SLICES, MIX])
    load = parser.add_argument_group("load")
    load.add_argument(
        "--trace",
        default="builtin:conversation",
        metavar="FILE|NAME",
        help=f"a CSV file (time, prompt, output[, class]), {names}, or"
        " synthetic:requests=1000,cv=2,prompt=512,output=128 (default %(default)s)",
    )
    load.add_argument(
        "--rate", metavar="R[,R...]", help="requests/s, one window each (default: the trace's own)"
    )
    load.add_argument(
        "--duration", type=float, metavar="S", help="seconds of a window (default: whole trace)"
    )
    load.add_argument("--repeats", type=int, default=1, help="windows per rate (default 1)")
    load.add_argument(
        "--shares",
        action="append",
        default=[],
        metavar="[LABEL:]CLASS=SHARE,...",
        help="classes for the rows that have none, or for those labelled LABEL; repeatable",
    )
    load.add_argument(
        "--max-len", type=int, metavar="TOKENS", help="drop requests longer than this in all"
    )
    load.add_argument("--cut", action="store_true", help="shorten them instead of dropping")
    load.add_argument("--seed", type=int, default=0, help="of classes, prompts, noise (default 0)")
    out = parser.add_argument_group("output")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    out.add_argument("--png", type=Path, metavar="FILE", help="write the picture")
    out.add_argument("--plain", action="store_true", help="plain text instead of tables")


def add_sweep_arguments(parser: argparse.ArgumentParser, *, tolerance: float) -> None:
    """The arguments of a search for the highest rate that holds."""
    sweep = parser.add_argument_group("search")
    sweep.add_argument(
        "--sweep", action="store_true", help="find the highest rate that holds, from --rate on"
    )
    sweep.add_argument("--target", type=float, default=0.9, help="strict attainment to hold (0.9)")
    sweep.add_argument(
        "--tolerance", type=float, default=tolerance, help="relative step of it (%(default)s)"
    )


def load_options(args: argparse.Namespace, *, max_total_tokens: int | None) -> LoadOptions:
    """The load that the arguments describe; raises BadInput."""
    for name, least in (("repeats", 1), ("duration", 1e-3), ("max_len", 2)):
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise BadInput(
                f"{value} is too small, at least {least} needed",
                field=f"--{name.replace('_', '-')}",
            )
    return LoadOptions(
        trace=args.trace,
        shares=parse_shares(args.shares),
        max_total_tokens=args.max_len or max_total_tokens,
        cut=args.cut,
        seed=args.seed,
        duration_s=args.duration,
        rates=_rates(args.rate),
        repeats=args.repeats,
    )


def read_service(path: Path) -> ServiceSpec:
    """The service a manifest file declares; raises BadInput."""
    try:
        manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror}", field="-f") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not YAML: {error}", field="-f") from error
    return parse_service(manifest)


def targets_of(classes: Mapping[str, SloClass]) -> dict[str, Target]:
    """What plots and tables show as a class's targets."""
    return {
        name: Target(c.ttft.target_s, c.stages[0].tpot_s if len(c.stages) == 1 else None)
        for name, c in classes.items()
    }


def api_key(given: str | None) -> str | None:
    """The key given, or the one in the environment, as every OpenAI client does."""
    return given or os.environ.get("OPENAI_API_KEY") or None


def _rates(text: str | None) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        rates = (-1.0,)
    if any(not rate > 0 for rate in rates):
        raise BadInput(f"{text!r} is not a list of requests/s above 0", field="--rate")
    return rates
