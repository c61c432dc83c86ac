"""The promises under which bench.replay_speculation compares, and where it keeps what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
REPLAY = HERE / "results" / "replay"
RESULTS = HERE / "results" / "speculation"
REAL = RESULTS / "real"
ACCEPTANCE = HERE / "acceptance"


@dataclass(frozen=True, slots=True)
class Targets:
    """A set of promises. Steps are those of the ladder of rates (`rate_of`)."""

    manifest: Path
    folder: Path  # of results
    chunks: tuple[int, ...]
    """Tokens a step of `fcfs`: the best counts. Tight promises want smaller ones."""
    wide_chunks: tuple[int, ...]
    """Where drafts share the budget."""
    first: Mapping[str, int]
    """Step where the search begins, by policy."""
    window_s: float
    repeats: int
    """Simulated windows a rate: more where attainment falls slowly with the rate."""
    common: Mapping[str, int]
    """Step where the goodput of all is compared, by load: a rate that is too much for `fcfs`."""


TARGETS = {
    "usual": Targets(
        HERE / "targets.yaml",
        RESULTS,
        chunks=(128, 256, 512),
        wide_chunks=(256, 512),
        first={"fcfs": 8, "sloserve": 13},
        window_s=120.0,
        repeats=2,
        common={"conversation": 13, "mix": 13},
    ),
    "quarter": Targets(
        HERE / "targets-quarter.yaml",
        RESULTS / "quarter",
        chunks=(64, 128, 192),
        wide_chunks=(64, 128, 192),
        first={"fcfs": 3, "sloserve": 10},
        window_s=120.0,
        repeats=2,
        common={"conversation": 9, "mix": 9},
    ),
    "tight": Targets(
        HERE / "targets-tight.yaml",
        RESULTS / "tight",
        chunks=(32, 48, 64, 128),
        wide_chunks=(32, 48, 64, 128),
        first={"fcfs": 0, "sloserve": 9},
        window_s=300.0,
        repeats=4,
        common={"conversation": 5, "mix": 5},
    ),
}
