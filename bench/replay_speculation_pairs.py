"""
Do drafts by need cost promises where a replica is at its limit? Pairs of windows in real time.

    python -m bench.replay_speculation --real --at 2.59 --repeats 4      about 5 minutes a repeat

`sloserve` without drafts and by need meet the same arrivals, one after the other, and who is first
changes with every repeat; each repeat has other arrivals. The service, its prompts and the load are
those of replay_speculation_real.py (`--load`, `--targets`). Windows are kept in `pairs` (or
`pairs-mix`) beside what was simulated under the same promises.
"""

import argparse
import asyncio
import json
import statistics
from collections.abc import Sequence

from bench.replay_speculation_real import measured_profile, window
from bench.replay_speculation_table import Result
from bench.replay_speculation_ways import Series, Way
from rich.console import Console

from sloserve.load.report import provenance, write_json
from sloserve.load.summary import ALL

MODES = ("Never", "Auto")


def compare(args: argparse.Namespace, console: Console) -> int:
    """Measure the pairs that are not there yet and print all; the exit code."""
    series = Series(args.targets, args.load, args.windows, args.threads)
    profile = measured_profile(series)
    pairs: list[dict[str, Result]] = []
    for text in args.texts:
        for repeat in range(args.repeats):
            pair: dict[str, Result] = {}
            for mode in MODES if repeat % 2 else MODES[::-1]:
                way = Way(text, "sloserve", mode)
                key = {"windows": args.windows, "threads": args.threads}
                path = series.file(f"{way.name}-{args.at:.2f}-{repeat}", folder="pairs")
                if not path.exists() or json.loads(path.read_text("utf-8"))["key"] != key:
                    found = asyncio.run(
                        window(series, way, rate=args.at, profile=profile, repeat=repeat)
                    )
                    del found["steps"]
                    write_json(path, {"key": key, "made": provenance(), "mode": mode} | found)
                pair[mode] = json.loads(path.read_text(encoding="utf-8"))
            pairs.append(pair)
            console.print(_line(pair), highlight=False, markup=False, soft_wrap=True)
    console.print(summary(pairs), highlight=False, markup=False, soft_wrap=True)
    return 0


def kept(result: Result) -> float:
    """The share of promises that a window kept."""
    return float(result["measured"]["classes"][ALL]["attainment"])


def summary(pairs: Sequence[dict[str, Result]]) -> str:
    """Means of both, and of their difference with its standard error, in points."""
    means = [100 * statistics.fmean(kept(pair[mode]) for pair in pairs) for mode in MODES]
    gains = [100 * (kept(pair["Auto"]) - kept(pair["Never"])) for pair in pairs]
    text = (
        f"kept: {means[0]:.1f}% without drafts, {means[1]:.1f}% by need: {means[1] - means[0]:+.1f}"
    )
    if len(gains) < 2:
        return text
    return f"{text} points, standard error {statistics.stdev(gains) / len(gains) ** 0.5:.1f}"


def _line(pair: dict[str, Result]) -> str:
    told = []
    for mode in MODES:
        row, drafts = pair[mode]["measured"]["classes"][ALL], pair[mode]["drafts"]
        told.append(
            f"{mode}: {kept(pair[mode]):.1%} kept, {row['output_rate']:.0f} tokens/s,"
            f" TPOT {row['tpot']['p50'] * 1000:.0f} ms, drafts {drafts['accepted']} right"
            f" {drafts['rejected']} wrong"
        )
    return f"{pair['Never']['measured']['rate']:.2f}/s  " + "  |  ".join(told)
