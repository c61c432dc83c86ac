"""Plots of reports: attainment against rate, and latencies against their targets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sloserve.load.report import Window
from sloserve.load.summary import ALL, ClassSummary, Quantiles

PALETTE = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
INK = "#1f2937"
FAINT = "#9ca3af"
STYLE = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}


def plot_windows(path: Path, windows: Sequence[Window], *, title: str, target: float) -> None:
    """
    The picture of a run: with several rates attainment against rate, with one the latencies.

    `target` (share) is drawn as the line that must be held.
    """
    if len({round(w.rate, 6) for w in windows}) > 1:
        _save(path, attainment_figure(windows, title=title, target=target))
    else:
        _save(path, latency_figure(windows[0], title=title))


def attainment_figure(windows: Sequence[Window], *, title: str, target: float) -> Figure:
    """Strict attainment per class (one policy) or per policy (several), against offered rate."""
    policies = list(dict.fromkeys(w.policy for w in windows))
    with plt.style.context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
        for colour, (name, share, goodput) in zip(
            _cycle(), _lines(windows, policies), strict=False
        ):
            wide = 2.4 if name == ALL or len(policies) > 1 else 1.4
            left.plot(*_xy(share), marker="o", ms=4, lw=wide, color=colour, label=name)
            right.plot(*_xy(goodput), marker="o", ms=4, lw=wide, color=colour, label=name)
        left.axhline(target, color=INK, lw=1, ls="--")
        left.annotate(
            f"{target:.0%}",
            (1, target),
            xycoords=("axes fraction", "data"),
            xytext=(4, -3),
            textcoords="offset points",
        )
        left.set(
            title="Strict attainment", xlabel="offered rate (requests/s)", ylabel="requests kept"
        )
        left.set_ylim(0, 1.03)
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.set(
            title="Goodput",
            xlabel="offered rate (requests/s)",
            ylabel="kept requests per second",
        )
        right.set_ylim(bottom=0)
        left.legend(loc="lower left")
        figure.suptitle(title, x=0.02, ha="left", color=INK)
        figure.tight_layout()
    return figure


def latency_figure(window: Window, *, title: str) -> Figure:
    """Cumulative distribution of TTFT and TPOT per class, each against its target."""
    rows = {name: row for name, row in window.classes.items() if name != ALL}
    with plt.style.context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
        _cdf(left, {n: (r.ttft, r.ttft_target_s, r) for n, r in rows.items()})
        left.set(title="Time to first token", xlabel="TTFT (s)", ylabel="share of answers")
        _cdf(right, {n: (r.tpot, r.tpot_target_s, r) for n, r in rows.items()}, scale=1000)
        right.set(title="Time per output token", xlabel="mean TPOT (ms)", ylabel="share of answers")
        left.legend(loc="lower right")
        figure.suptitle(title, x=0.02, ha="left", color=INK)
        figure.tight_layout()
    return figure


def _lines(
    windows: Sequence[Window], policies: Sequence[str]
) -> list[tuple[str, dict[float, list[float]], dict[float, list[float]]]]:
    """(label, rate -> attainments, rate -> goodputs), one per class or per policy."""
    several = len(policies) > 1
    keys = policies if several else list(dict.fromkeys(n for w in windows for n in w.classes))
    lines = []
    for key in keys:
        share: dict[float, list[float]] = {}
        goodput: dict[float, list[float]] = {}
        for window in windows:
            row = window.classes.get(ALL if several else key)
            if row is None or (several and window.policy != key):
                continue
            share.setdefault(window.rate, []).append(row.attainment)
            goodput.setdefault(window.rate, []).append(row.goodput)
        lines.append((key, share, goodput))
    return lines


def _xy(points: Mapping[float, Sequence[float]]) -> tuple[list[float], list[float]]:
    rates = sorted(points)
    return rates, [sum(points[rate]) / len(points[rate]) for rate in rates]


def _cdf(
    axes: Axes,
    rows: Mapping[str, tuple[Quantiles, float | None, ClassSummary]],
    *,
    scale: float = 1,
) -> None:
    highest = 0.0
    for colour, (name, (quantiles, target_s, row)) in zip(_cycle(), rows.items(), strict=False):
        grid = [value * scale for value in quantiles.grid]
        if grid:
            shares = [i / (len(grid) - 1) for i in range(len(grid))]
            label = f"{name} ({row.attainment:.0%} kept)"
            axes.plot(grid, shares, color=colour, lw=2, label=label)
            highest = max(highest, grid[-2])
        if target_s is not None:
            axes.axvline(target_s * scale, color=colour, lw=1, ls="--")
            highest = max(highest, target_s * scale)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, highest * 1.08 or 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _cycle() -> list[str]:
    return list(PALETTE) * 4


def _save(path: Path, figure: Figure) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
