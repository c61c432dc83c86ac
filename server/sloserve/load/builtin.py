"""
The traces by name: a CSV file, `builtin:NAME` (ships with the package), or `synthetic:...`.

`data/README.md` says what the shipped slices are and under which licence.
"""

from importlib.resources import as_file, files
from pathlib import Path

from sloserve.errors import BadInput
from sloserve.load.mixes import synthetic
from sloserve.load.reader import from_arrivals, read_trace
from sloserve.load.trace import Trace, half_and_half

SLICES = {
    "conversation": "Azure 2023 conversation, 600-1200 s (CC-BY-4.0, Azure/AzurePublicDataset)",
    "coding": "Azure 2023 coding, 1500-2100 s (CC-BY-4.0, Azure/AzurePublicDataset)",
}
SLICE_S = 600.0
MIX = "mix"


def load_trace(
    name: str, *, max_total_tokens: int | None = None, cut: bool = False, seed: int = 0
) -> Trace:
    """
    The trace called `name`, no request longer than `max_total_tokens` (see `Trace.capped`).

    `builtin:mix` is half conversation and half coding by number of requests, counted after the
    long ones are gone. `seed` matters for synthetic ones only.
    """

    def capped(trace: Trace) -> Trace:
        return trace if max_total_tokens is None else trace.capped(max_total_tokens, cut=cut)

    kind, colon, rest = name.partition(":")
    if not colon or kind not in ("builtin", "synthetic"):
        return capped(read_trace(Path(name)))
    if kind == "synthetic":
        return capped(synthetic(rest, seed=seed))
    if rest == MIX:
        return half_and_half(capped(_slice("conversation")), capped(_slice("coding")), name="mix")
    if rest not in SLICES:
        raise BadInput(
            f"no trace {rest!r} ships; there are {', '.join([*SLICES, MIX])}", field="--trace"
        )
    return capped(_slice(rest))


def _slice(name: str) -> Trace:
    with as_file(files("sloserve.load") / "data" / f"{name}.csv.gz") as path:
        rows = read_trace(path).arrivals
    return from_arrivals(name, rows, duration_s=SLICE_S).with_note(SLICES[name])
