"""The replay's results as a table, Markdown and a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.replay_plan import FACTORS, TARGET, Planned
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from sloserve.load.plot import FAINT, INK, PALETTE, STYLE
from sloserve.load.report import write_json
from sloserve.load.summary import ALL
from sloserve.load.sweep import crossing

AGREE = 0.01


@dataclass(slots=True)
class Curve:
    """One policy on one load: measured and simulated, by the rate asked for (requests/s)."""

    plan: Planned
    offered: dict[float, list[float]] = field(default_factory=dict)  # arrivals that came, per s
    kept: dict[float, list[float]] = field(default_factory=dict)
    simulated: dict[float, list[float]] = field(default_factory=dict)
    goodput: dict[float, list[float]] = field(default_factory=dict)
    mean_tpot: dict[float, list[float]] = field(default_factory=dict)

    def by_offered(self, points: dict[float, list[float]]) -> dict[float, float]:
        """Means of the repeats by the rate that was really offered."""
        offered = means(self.offered)
        return {offered[rate]: mean for rate, mean in means(points).items()}

    def capacity(self, points: dict[float, list[float]]) -> float | None:
        """Where attainment falls through the target, means of the repeats joined by lines."""
        return crossing(self.by_offered(points), TARGET)

    def holds(self, points: dict[float, list[float]]) -> tuple[float, bool] | None:
        """
        (capacity, True), or where every rate that was tried holds (the highest of them, False).
        """
        found = self.capacity(points)
        if found is not None:
            return found, True
        joined = self.by_offered(points)
        return (max(joined), False) if joined and min(joined.values()) >= TARGET else None

    def goodput_at(self, factor: float) -> float | None:
        """Goodput at `factor` times the predicted capacity."""
        rate = self.plan.rates[FACTORS.index(factor)]
        values = self.goodput.get(rate)
        return sum(values) / len(values) if values else None


@dataclass(slots=True)
class Disagreement:
    """How far the gateway's counters are from the client's scores, per window and class."""

    windows: int = 0
    counted: dict[str, list[int]] = field(default_factory=dict)  # class: eligible, apart; summed
    worst_share: float = 0.0  # of |attained - attained| / eligible
    where: str = ""
    over: int = 0  # classes in windows beyond AGREE


def summarise_run(folder: Path, plans: Sequence[Planned], *, console: Console) -> None:
    """Read every window of these plans, print the table, write summary.md/json and the picture."""
    curves, disagreement, bottlenecks = _read(folder, plans)
    lines = _markdown(curves, disagreement, bottlenecks)
    (folder / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "summary.json", _json(curves, disagreement))
    _plot(folder / "attainment.png", curves)
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def means(points: dict[float, list[float]]) -> dict[float, float]:
    """The mean of the repeats at each rate."""
    return {rate: sum(v) / len(v) for rate, v in sorted(points.items())}


def _read(folder: Path, plans: Sequence[Planned]) -> tuple[list[Curve], Disagreement, list[str]]:
    curves = [Curve(p) for p in plans]
    disagreement, bottlenecks = Disagreement(), []
    for curve in curves:
        p = curve.plan
        for rate in p.rates:
            for path in sorted(folder.glob(f"{p.load}-{p.policy}-{rate:.3f}-*.json")):
                result = json.loads(path.read_text(encoding="utf-8"))
                row = result["measured"]["classes"][ALL]
                curve.offered.setdefault(rate, []).append(result["measured"]["rate"])
                curve.kept.setdefault(rate, []).append(row["attainment"])
                curve.goodput.setdefault(rate, []).append(row["goodput"])
                curve.mean_tpot.setdefault(rate, []).append(row["attainment_mean"])
                simulated = result["simulated"]["classes"][ALL]["attainment"]
                curve.simulated.setdefault(rate, []).append(simulated)
                _compare(disagreement, result, name=path.stem)
                if why := result["measured"]["facts"]["client"]["bottleneck"]:
                    bottlenecks.append(f"{path.stem}: {why}")
    return curves, disagreement, bottlenecks


def _compare(disagreement: Disagreement, result: dict[str, Any], *, name: str) -> None:
    disagreement.windows += 1
    for slo_class, row in result["measured"]["classes"].items():
        if slo_class == ALL or not row["eligible"]:
            continue
        counted = result["gateway"].get(slo_class, {"eligible": 0, "attained": 0})
        apart = max(
            abs(row["attained"] - counted["attained"]), abs(row["eligible"] - counted["eligible"])
        )
        sums = disagreement.counted.setdefault(slo_class, [0, 0])
        sums[0] += row["eligible"]
        sums[1] += apart
        share = apart / row["eligible"]
        disagreement.over += share > AGREE
        if share > disagreement.worst_share:
            disagreement.worst_share, disagreement.where = share, f"{name}, {slo_class}"


def _markdown(
    curves: Sequence[Curve], disagreement: Disagreement, bottlenecks: Sequence[str]
) -> list[str]:
    lines = [
        "| load | policy (best setting) | measured | simulated, same windows | off by"
        " | predicted before | sloserve is | goodput at 1.0x / 1.5x |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for curve in curves:
        p = curve.plan
        real, same = curve.holds(curve.kept), curve.holds(curve.simulated)
        ours = next(
            (c for c in curves if (c.plan.load, c.plan.policy) == (p.load, "sloserve")), curve
        )
        best = ours.holds(ours.kept)
        off = f"{same[0] / real[0] - 1:+.0%}" if same and real and same[1] and real[1] else "-"
        ratio = "-"
        if best and real and real[1] and curve is not ours:
            ratio = f"{'' if best[1] else '> '}{best[0] / real[0]:.2f}x"
        goodput = f"{_number(curve.goodput_at(1.0))} / {_number(curve.goodput_at(1.5))}"
        lines.append(
            f"| {p.load} | `{p.setting}` | {_capacity(real)} | {_capacity(same)} | {off}"
            f" | {p.capacity:.2f} | {ratio} | {goodput} |"
        )
    lines += ["", "Capacity: requests/s at which 90 % keep every promise, to the token.", ""]
    for curve in curves:
        points = ", ".join(
            f"{rate:.2f}: {kept:.1%} ({curve.by_offered(curve.simulated)[rate]:.1%})"
            for rate, kept in curve.by_offered(curve.kept).items()
        )
        lines.append(f"- {curve.plan.load}, {curve.plan.policy}: {points}")
    lines += [
        "",
        f"{disagreement.windows} windows; the gateway's counters differ from the client's by at"
        f" most {disagreement.worst_share:.1%} of a class's requests"
        + (f" ({disagreement.where})" if disagreement.where else "")
        + f", by more than {AGREE:.0%} in {disagreement.over} of all classes and windows;"
        " over all windows, by class: "
        + ", ".join(
            f"{name} {apart} of {eligible}"
            for name, (eligible, apart) in disagreement.counted.items()
        )
        + ".",
    ]
    return [*lines, *(f"- the client was the bottleneck in {line}" for line in bottlenecks)]


def _json(curves: Sequence[Curve], disagreement: Disagreement) -> dict[str, Any]:
    return {
        "curves": [
            {
                "load": c.plan.load,
                "policy": c.plan.policy,
                "setting": c.plan.setting,
                "predicted": c.plan.capacity,
                "measured": c.capacity(c.kept),
                "simulated": c.capacity(c.simulated),
                "offered": {f"{r}": v for r, v in c.offered.items()},
                "attainment": {f"{r}": v for r, v in c.kept.items()},
                "attainment_mean_tpot": {f"{r}": v for r, v in c.mean_tpot.items()},
                "attainment_simulated": {f"{r}": v for r, v in c.simulated.items()},
                "goodput": {f"{r}": v for r, v in c.goodput.items()},
            }
            for c in curves
        ],
        "gateway": {
            "windows": disagreement.windows,
            "worst_share": disagreement.worst_share,
            "where": disagreement.where,
            "classes_over_1_percent": disagreement.over,
            "eligible_and_apart": disagreement.counted,
        },
    }


def _plot(path: Path, curves: Sequence[Curve]) -> None:
    loads = list(dict.fromkeys(c.plan.load for c in curves))
    policies = list(dict.fromkeys(c.plan.policy for c in curves))
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            2, len(loads), figsize=(5.6 * len(loads), 7), squeeze=False, sharex="col"
        )
        for column, load in enumerate(loads):
            kept, goodput = grid[0][column], grid[1][column]
            for curve in (c for c in curves if c.plan.load == load):
                colour = PALETTE[policies.index(curve.plan.policy)]
                for axes, points in ((kept, curve.kept), (goodput, curve.goodput)):
                    lines = curve.by_offered(points)
                    axes.plot(*zip(*lines.items(), strict=True), "o-", color=colour, lw=2, ms=5,
                              label=curve.plan.policy)  # fmt: skip
                    axes.vlines(
                        list(lines), [min(v) for v in points.values()],
                        [max(v) for v in points.values()], color=colour, lw=1,
                    )  # fmt: skip
                simulated = curve.by_offered(curve.simulated)
                kept.plot(*zip(*simulated.items(), strict=True), ":", color=colour, lw=1.4)
            kept.plot([], [], ":", color=FAINT, label="simulated")
            kept.axhline(TARGET, color=INK, lw=1, ls="--")
            kept.set(title=f"{load}: every promise kept", ylabel="share of requests")
            kept.set_ylim(0, 1.03)
            kept.yaxis.set_major_formatter(PercentFormatter(1.0))
            kept.legend(loc="lower left")
            goodput.set(
                title=f"{load}: goodput",
                xlabel="offered rate (requests/s)",
                ylabel="kept requests per second",
            )
            goodput.set_ylim(bottom=0)
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


def _capacity(held: tuple[float, bool] | None) -> str:
    if held is None:
        return "-"
    rate, found = held
    return f"{rate:.2f}" if found else f"> {rate:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
