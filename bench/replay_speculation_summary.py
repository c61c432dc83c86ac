"""Capacity and goodput with and without speculation as a table, Markdown and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.replay_speculation_targets import Targets
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from sloserve.load.plot import INK, PALETTE, STYLE
from sloserve.load.report import write_json
from sloserve.load.summary import ALL

TARGET = 0.9
BAR = 1.5


def summarise(
    curves: Sequence[dict[str, Any]], targets: Targets, *, machine: str, console: Console
) -> None:
    """Print the table; write summary-MACHINE.md, .json and .png to the folder of `targets`."""
    folder = targets.folder
    best = best_settings(curves)
    lines = [
        *capacities(best),
        "",
        f"Capacity: requests/s at which 90 % keep every promise of {targets.manifest.name}; none:"
        " fewer do at every rate. Simulated.",
        "",
        *goodputs(best),
    ]
    (folder / f"summary-{machine}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        folder / f"summary-{machine}.json",
        {"curves": [{k: v for k, v in c.items() if k != "points"} for c in curves]},
    )
    plot(folder / f"summary-{machine}.png", best)
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def best_settings(curves: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each load, text and system the setting with the highest capacity."""
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for curve in curves:
        key = (curve["load"], curve["text"], curve["system"])
        if key not in best or (curve["capacity"] or 0.0) > (best[key]["capacity"] or 0.0):
            best[key] = curve
    return list(best.values())


def capacities(best: Sequence[dict[str, Any]]) -> list[str]:
    """The table of capacities; ratios are against `fcfs` without drafts."""
    systems = list(dict.fromkeys(c["system"] for c in best))
    lines = [
        "| load, text | " + " | ".join(systems) + " | by need / `fcfs` | by need / off"
        " | by need / `fcfs`, fixed |",
        "| --- " * (len(systems) + 4) + "|",
    ]
    for load, text in dict.fromkeys((c["load"], c["text"]) for c in best):
        rate = {c["system"]: c["capacity"] for c in best if (c["load"], c["text"]) == (load, text)}
        need = rate.get("sloserve, by need")
        ratios = [
            _ratio(need, rate.get(other)) for other in ("fcfs", "sloserve, off", "fcfs, fixed")
        ]
        cells = [_number(rate.get(system)) for system in systems] + ratios
        lines.append(f"| {load}, {text} | " + " | ".join(cells) + " |")
    return lines


def goodputs(best: Sequence[dict[str, Any]]) -> list[str]:
    """Goodput per class of every system at one rate that is too much for `fcfs`."""
    lines = []
    for load in dict.fromkeys(c["load"] for c in best):
        own = [c for c in best if c["load"] == load]
        rate = own[0]["common"]
        rows = own[0]["points"][rate]
        classes = [*sorted(name for name in rows[0]["classes"] if name != ALL), ALL]
        offered = sum(row["rate"] for row in rows) / len(rows)
        lines += [
            f"Goodput per class (requests/s that kept every promise), {load} at {offered:.2f}/s:",
            "",
            "| text | drafts | " + " | ".join(classes) + " | of all kept | drafts right |",
            "| --- " * (len(classes) + 4) + "|",
        ]
        shown: set[str] = set()
        for curve in own:
            off = curve["system"] in ("fcfs", "sloserve, off")
            if off and curve["system"] in shown:
                continue
            shown.add(curve["system"])
            rows = curve["points"][rate]
            goodput = [
                sum(r["classes"].get(name, [0, 0, 0.0])[2] for r in rows) / len(rows)
                for name in classes
            ]
            kept = sum(r["classes"][ALL][1] for r in rows) / sum(r["classes"][ALL][0] for r in rows)
            accepted = sum(r["accepted"] for r in rows)
            drafted = accepted + sum(r["rejected"] for r in rows)
            lines.append(
                f"| {'any' if off else curve['text']} | {curve['system']} | "
                + " | ".join(f"{g:.2f}" for g in goodput)
                + f" | {kept:.1%} | {f'{accepted / drafted:.2f}' if drafted else ''} |"
            )
        lines.append("")
    return lines


def plot(path: Path, best: Sequence[dict[str, Any]]) -> None:
    """Attainment by rate: a row of panels per load, one per text."""
    loads = list(dict.fromkeys(c["load"] for c in best))
    texts = list(dict.fromkeys(c["text"] for c in best))
    systems = list(dict.fromkeys(c["system"] for c in best))
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            len(loads), len(texts), figsize=(3.2 * len(texts), 3.2 * len(loads)), squeeze=False
        )
        for curve in best:
            axes = grid[loads.index(curve["load"])][texts.index(curve["text"])]
            points = {
                sum(r["rate"] for r in rows) / len(rows): sum(r["classes"][ALL][1] for r in rows)
                / max(1, sum(r["classes"][ALL][0] for r in rows))
                for rows in curve["points"].values()
            }
            colour = PALETTE[systems.index(curve["system"])]
            line = zip(*sorted(points.items()), strict=True)
            axes.plot(*line, "o-", lw=1.6, ms=3, color=colour, label=curve["system"])
            axes.axhline(TARGET, color=INK, lw=1, ls="--")
            axes.set(title=f"{curve['load']}, {curve['text']}", xlabel="offered (requests/s)")
            axes.set_ylim(0.3, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        grid[0][0].legend(loc="lower left", fontsize=7)
        grid[0][0].set_ylabel("every promise kept (simulated)")
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


def _ratio(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}x" if ours and other else "-"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value else "none"
