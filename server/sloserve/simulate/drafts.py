"""What `sloserve simulate` is told about speculation."""

import argparse
from dataclasses import dataclass

from sloserve.errors import BadInput
from sloserve.perf import Profile
from sloserve.planner.asking import PROPOSE_S
from sloserve.simulate.acceptance import FIELD, AcceptanceProfile, parse_acceptance
from sloserve.slo import SpeculationSpec

PROPOSE_US = PROPOSE_S * 1e6
"""As the planner takes it to be."""
MAX_FIXED = 64


@dataclass(frozen=True, slots=True)
class Drafts:
    """Speculation of a simulated service; without `acceptance` there is none."""

    acceptance: AcceptanceProfile | None = None
    fixed: int | None = None
    most: int = 8
    by_model: bool = False
    propose_s: float = 0.0


# argparse names the type of a group only with an underscore
def add_draft_arguments(group: argparse._ArgumentGroup) -> None:
    """The arguments that `drafts_of` reads."""
    group.add_argument(
        "--acceptance",
        action="append",
        default=[],
        metavar="[CLASS:]A[,A...]|FILE",
        help="how often a draft is right (0 to 1, by position) when those before it were, or a file"
        " that bench/acceptance.py wrote; repeatable (default: no speculation)",
    )
    group.add_argument(
        "--speculation",
        metavar="Auto|Never|Fixed:N",
        help="with --acceptance: drafts by need and where they pay, none, or N for every decode"
        " (default: the manifest's mode)",
    )
    group.add_argument(
        "--propose-us",
        type=float,
        default=PROPOSE_US,
        help="microseconds that looking for n-gram drafts takes per request and step, as on a CPU"
        " (%(default)g; with --exact 0)",
    )


def drafts_of(args: argparse.Namespace, spec: SpeculationSpec, *, profile: Profile) -> Drafts:
    """What arguments and manifest say together; raises BadInput."""
    mode, fixed = _mode(args.speculation or spec.mode)
    if args.speculation is not None and mode != "Never" and not args.acceptance:
        raise BadInput(
            f"{args.speculation} needs {FIELD}, how often drafts are right", field="--speculation"
        )
    if not 0 <= args.propose_us < 1e6:
        raise BadInput(f"{args.propose_us} is not within 0 to 1e6", field="--propose-us")
    acceptance = parse_acceptance(args.acceptance) if args.acceptance else None
    if acceptance is None or mode == "Never":
        return Drafts()
    by_model = spec.drafter != "ngram"
    if by_model and acceptance.is_recorded:
        raise BadInput(
            "it was recorded with n-gram drafts and says nothing of those of"
            f" {spec.drafter}: give chances, e.g. 0.8,0.7",
            field=FIELD,
        )
    if by_model and not profile.step.k2:
        raise BadInput(
            f"the profile does not know what a draft of {spec.drafter} costs (k2 is 0): measure it"
            " with `sloserve profile` and that draft model, or set drafter: ngram",
            field="--profile",
        )
    return Drafts(
        acceptance=acceptance,
        fixed=fixed,
        most=spec.max_draft_tokens,
        by_model=by_model,
        propose_s=0.0 if args.exact else args.propose_us * 1e-6,
    )


def _mode(text: str) -> tuple[str, int | None]:
    """(mode, drafts of a fixed one)."""
    if text in ("Auto", "Never"):
        return text, None
    word, _, number = text.partition(":")
    if word != "Fixed" or not number.isdecimal() or int(number) > MAX_FIXED:
        raise BadInput(
            f"{text!r} is none of Auto, Never, Fixed:N (N up to {MAX_FIXED})", field="--speculation"
        )
    return word, int(number)
