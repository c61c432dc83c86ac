"""
What a decision of the planner costs: `python bench/planner.py [--json FILE]`.

Three sizes (running, waiting), one core. `one run` is a single play-forward of everything that
runs and waits; `arrival` a whole decision when one newcomer joins the rest, who are already
selected; `burst` one in which all who wait are new; `steady` a step without arrivals.
"""

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from sloserve.perf import StepModel
from sloserve.planner import Limits, Plan, Row, Snapshot, Tier
from sloserve.planner.decision import Decision
from sloserve.planner.policy import SloservePolicy
from sloserve.planner.settings import Settings
from sloserve.planner.view import ask_of

SIZES = ((30, 0), (64, 10), (256, 40), (1024, 100))
MODEL = StepModel(w=0.004, a0=3e-6, c1=0.003, a1=1.5e-5, b=3e-8, d=3e-9)  # a fast GPU
REPEATS = {30: 400, 64: 300, 256: 120, 1024: 40}


def a_world(num_running: int, num_waiting: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Decodes with some bank, a few unfinished prefills, and prompts that wait."""
    rng = random.Random(seed)
    tpots = (0.05, 0.1, 0.2)
    running = []
    for i in range(num_running):
        known, left = rng.randint(100, min(5000, 700_000 // num_running)), rng.randint(1, 400)
        prefills = i % 64 == 63
        tpot = rng.choice(tpots)
        running.append(
            Row(
                id=i,
                tier=Tier.PROMISED,
                arrival_s=-1.0,
                num_known=known,
                num_computed=known // 2 if prefills else known - 1,
                num_output=0 if prefills else 9,
                due_s=rng.uniform(0.5, 2.0) if prefills else tpot + rng.uniform(0.0, 1.0),
                tpot_s=tpot,
                tightest_tpot_s=tpot,
                anchored=not prefills,
                expected_output=float(left),
                expected_sd=50.0,
                max_output=1024,
                weight=1.0,
                num_blocks=-(-known // 16),
                running=True,
            )
        )
    waiting = []
    for i in range(num_waiting):
        prompt, tpot = rng.randint(100, 3000), rng.choice(tpots)
        waiting.append(
            replace(
                running[0],
                id=100_000 + i,
                arrival_s=0.0,
                num_known=prompt,
                num_computed=0,
                num_output=0,
                due_s=rng.choice((0.5, 1.0, 3.0)),
                tpot_s=tpot,
                tightest_tpot_s=tpot,
                anchored=False,
                num_blocks=0,
                running=False,
            )
        )
    return running, waiting


def a_snapshot(running: list[Row], waiting: list[Row]) -> Snapshot:
    """Enough memory that it does not bind."""
    limits = Limits(block_size=16, num_blocks=400_000, max_running=2048)
    return Snapshot(
        now_s=0.0,
        model=MODEL,
        margin_s=0.001,
        limits=limits,
        free_blocks=300_000,
        running=running,
        waiting=waiting,
        best_effort=[],
    )


def applied(snapshot: Snapshot, plan: Plan, *newcomers: Row) -> Snapshot:
    """The snapshot after who was admitted runs and who was refused left; no time has passed."""
    joined = [replace(r, running=True) for r in snapshot.waiting if r.id in plan.admitted]
    gone = {*plan.admitted, *plan.infeasible}
    stay = [row for row in snapshot.waiting if row.id not in gone]
    running = [row for row in snapshot.running if row.id not in plan.relegated]
    return a_snapshot([*running, *joined], [*stay, *newcomers])


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of processor time of one call: others on the machine do not count."""
    start = time.thread_time()
    action()
    return 1e3 * (time.thread_time() - start)


def quantiles(times: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(times)
    return {
        "p50_ms": round(ordered[len(ordered) // 2], 4),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 4),
    }


def measure(num_running: int, num_waiting: int) -> dict[str, object]:
    """All figures of one size."""
    runs, arrivals, bursts, steady = [], [], [], []
    for repeat in range(REPEATS[num_running]):
        running, waiting = a_world(num_running, num_waiting, repeat)
        snapshot = a_snapshot(running, waiting)
        decision = Decision(snapshot, Settings())
        asks = [ask_of(row, decision.base_s, MODEL, firm=False) for row in waiting]
        runs.append(timed(lambda d=decision, a=asks: d.accept(a)))  # type: ignore[misc]
        if waiting:
            fresh = SloservePolicy()
            bursts.append(timed(lambda p=fresh, s=snapshot: p.plan(s)))  # type: ignore[misc]
            known = SloservePolicy()
            most = a_snapshot(running, waiting[:-1])
            joined = applied(most, known.plan(most), waiting[-1])
            arrivals.append(timed(lambda p=known, s=joined: p.plan(s)))  # type: ignore[misc]
            snapshot = joined
            after = applied(snapshot, known.plan(snapshot))
            steady.append(timed(lambda p=known, s=after: p.plan(s)))  # type: ignore[misc]
        else:
            policy = SloservePolicy()
            snapshot = applied(snapshot, policy.plan(snapshot))
            steady.append(timed(lambda p=policy, s=snapshot: p.plan(s)))  # type: ignore[misc]
    found: dict[str, object] = {"running": num_running, "waiting": num_waiting}
    rows = {"one run": runs, "steady": steady, "arrival": arrivals, "burst": bursts}
    found.update({name: quantiles(times) for name, times in rows.items() if times})
    return found


def main() -> int:
    """Print a table, and JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    results = [measure(*size) for size in SIZES]
    print(f"{'running':>8} {'waiting':>8}  {'what':<8} {'p50 ms':>9} {'p99 ms':>9}")
    for result in results:
        for name in ("one run", "steady", "arrival", "burst"):
            figures = result.get(name)
            if isinstance(figures, dict):
                head = f"{result['running']:>8} {result['waiting']:>8}"
                print(f"{head}  {name:<8} {figures['p50_ms']:>9.3f} {figures['p99_ms']:>9.3f}")
    if args.json:
        machine = {"python": platform.python_version(), "machine": platform.processor()}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"on": machine, "sizes": results}, file, indent=2)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
