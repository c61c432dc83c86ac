"""What `bench.replay_speculation --real` measured, as tables."""

from collections.abc import Sequence
from typing import Any

from bench.replay_plan import TARGET
from bench.replay_speculation_ways import Way

from sloserve.load.summary import ALL
from sloserve.load.sweep import crossing

Result = dict[str, Any]


def capacity(results: Sequence[Result], which: str) -> float | None:
    """Requests/s really offered where attainment falls through the target."""
    return crossing(_by_rate(results, which), TARGET)


def told_capacity(results: Sequence[Result], which: str) -> str:
    """The same in words where all windows are on one side of it."""
    rate, shares = capacity(results, which), _by_rate(results, which)
    if rate is not None:
        return f"{rate:.2f}"
    if all(share < TARGET for share in shares.values()):
        return f"below {min(shares):.2f}"
    if all(share >= TARGET for share in shares.values()):
        return f"above {max(shares):.2f}"
    return "not bracketed"


def table(found: Sequence[tuple[Way, list[Result]]]) -> list[str]:
    """Capacities, then every window, measured and simulated."""
    lines = ["| prompts | policy, speculation | capacity, requests/s | simulated |"]
    lines.append("| --- " * 4 + "|")
    for way, results in found:
        told = [told_capacity(results, which) for which in ("measured", "simulated")]
        lines.append(f"| {way.text} | {way.policy}, {way.mode} | {' | '.join(told)} |")
    classes = sorted(n for n in found[0][1][0]["measured"]["classes"] if n != ALL)
    lines += [
        "",
        "| prompts | policy, speculation | requests/s | kept | simulated | goodput | "
        + " | ".join(f"{name}: goodput" for name in classes)
        + " | drafts right | tokens/s | TPOT p50, ms | the client |",
        "| --- " * (len(classes) + 10) + "|",
    ]
    rows = [(way, result) for way, results in found for result in results]
    rows.sort(key=lambda row: (row[0].name, row[1]["measured"]["rate"]))
    return lines + [_row(way, result, classes) for way, result in rows]


def line(way: Way, result: Result) -> str:
    """A window just measured."""
    row, rate = result["measured"]["classes"][ALL], result["measured"]["rate"]
    return f"{way.name} at {rate:.2f}: {row['attainment']:.1%} kept, goodput {row['goodput']:.2f}"


def _by_rate(results: Sequence[Result], which: str) -> dict[float, float]:
    windows = [result[which] for result in results]
    return {w["rate"]: w["classes"][ALL]["attainment"] for w in windows}


def _row(way: Way, result: Result, names: Sequence[str]) -> str:
    rows, drafts = result["measured"]["classes"], result["drafts"]
    row, drafted = rows[ALL], drafts["accepted"] + drafts["rejected"]
    cells = [
        way.text,
        f"{way.policy}, {way.mode}",
        f"{result['measured']['rate']:.2f}",
        f"{row['attainment']:.1%}",
        f"{result['simulated']['classes'][ALL]['attainment']:.1%}",
        f"{row['goodput']:.2f}",
        *(f"{rows[name]['goodput']:.2f}" if name in rows else "-" for name in names),
        f"{drafts['accepted'] / drafted:.2f} of {drafted}" if drafted else "",
        f"{row['output_rate']:.0f}",
        "-" if row["tpot"]["p50"] is None else f"{row['tpot']['p50'] * 1000:.1f}",
        result["measured"]["facts"]["client"]["bottleneck"] or "kept up",
    ]
    return "| " + " | ".join(cells) + " |"
