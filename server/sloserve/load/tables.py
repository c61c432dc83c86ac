"""Reports for people: a table in a terminal, the same as plain lines elsewhere."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from sloserve.load.report import Capacity, Window
from sloserve.load.summary import ClassSummary, Quantiles

COLUMNS = (
    "class",
    "offered",
    "strict",
    "paper",
    "mean TPOT",
    "goodput/s",
    "TTFT p50/p99",
    "target",
    "TPOT p50/p99",
    "target",
    "gap p99",
    "declined",
    "degraded (TTFT p50/p99)",
)


def print_window(console: Console, window: Window, *, title: str) -> None:
    """One window: a row per class, then what was declined and why, then the notes."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for name, row in window.classes.items():
        table.add_row(*cells(name, row), style="bold" if name == "all" else None)
    console.print(table)
    for line in remarks(window):
        console.print(f"  {line}", style="dim", highlight=False)


def print_capacities(console: Console, capacities: Sequence[Capacity]) -> None:
    """The highest rate that holds per policy, and how many times the first one's that is."""
    table = Table(title="capacity", title_justify="left", title_style="bold")
    for name in ("policy", "strict target", "requests/s", "ratio", "windows tried", "confirmed"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    first = capacities[0].rate if capacities else 0.0
    for c in capacities:
        table.add_row(
            c.policy,
            f"{c.target:.0%}",
            f"{c.rate:.3g}",
            f"{c.rate / first:.2f}x" if first else "-",
            str(len(c.tried)),
            "yes" if c.confirmed else "no",
        )
    console.print(table)


def plain_window(window: Window, *, title: str) -> str:
    """The same table as plain text, columns padded with blanks."""
    rows = [COLUMNS, *(cells(name, row) for name, row in window.classes.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([title, *lines, *(f"  {line}" for line in remarks(window))])


def cells(name: str, row: ClassSummary) -> tuple[str, ...]:
    """One class as text, in the order of COLUMNS."""
    declined = row.endings.get("refused", 0)
    degraded = row.decisions.get("degraded", 0)
    delay = f" ({_pair(row.degraded_ttft)})" if degraded else ""
    return (
        name,
        str(row.offered),
        _percent(row.attainment, row.eligible),
        _percent(row.attainment_paper, row.eligible),
        _percent(row.attainment_mean, row.eligible),
        f"{row.goodput:.2f}",
        _pair(row.ttft),
        duration(row.ttft_target_s),
        _pair(row.tpot),
        duration(row.tpot_target_s),
        duration(row.gap_p99.p50),
        str(declined),
        f"{degraded}{delay}",
    )


def remarks(window: Window) -> Iterable[str]:
    """Lines below a table: reasons, errors, what does not count, notes."""
    for name, row in window.classes.items():
        if name == "all":
            continue
        if row.reasons:
            yield f"{name}: declined or degraded for {_counts(row.reasons)}"
        if row.errors:
            yield f"{name}: errors: {_counts(row.errors)}"
        if row.offered != row.eligible:
            yield f"{name}: {row.offered - row.eligible} requests do not count (see docs)"
    yield from window.notes


def duration(value_s: float | None) -> str:
    """Seconds as a short text with its unit."""
    if value_s is None:
        return "-"
    return f"{value_s * 1000:.0f} ms" if value_s < 1 else f"{value_s:.2f} s"


def _pair(q: Quantiles) -> str:
    if q.count == 0:
        return "-"
    return f"{duration(q.p50)}/{duration(q.p99)}"


def _percent(share: float, of: int) -> str:
    return f"{share:.1%}" if of else "-"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())
