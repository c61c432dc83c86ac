"""One window on the virtual clock, judged as a real one would be."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from sloserve.load.options import LoadOptions, targets_of
from sloserve.load.records import Record, judge
from sloserve.load.report import Capacity, Window
from sloserve.load.summary import summarise
from sloserve.load.sweep import Search
from sloserve.load.trace import Trace
from sloserve.planner.policies import make_policy
from sloserve.simulate.cluster import Cluster
from sloserve.simulate.settings import SimSettings
from sloserve.slo import SloClass


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load and a service: everything a run is made from, so that it can run anywhere."""

    trace: Trace
    options: LoadOptions
    classes: Mapping[str, SloClass]
    settings: SimSettings

    def with_policy(self, policy: str, params: Mapping[str, float | int]) -> "Scenario":
        """The same for another policy."""
        settings = replace(self.settings, policy=policy, policy_params=dict(params))
        return replace(self, settings=settings)

    def window(self, rate: float, *, repeat: int = 0) -> Window:
        """The window number `repeat` at `rate` (requests/s), with noise of its own."""
        load = self.options.window(self.trace, rate=rate, repeat=repeat)
        settings = replace(self.settings, seed=self.settings.seed + repeat)
        return simulate(load, classes=self.classes, settings=settings)


def simulate(trace: Trace, *, classes: Mapping[str, SloClass], settings: SimSettings) -> Window:
    """
    Run `trace` against the simulated service; deterministic but for the measured planning time.

    Raises PromiseBroken when an admitted request's token is late although nothing excuses it
    (`SimSettings.strict`).
    """
    started_s = time.perf_counter()
    cluster = Cluster(
        classes,
        settings,
        new_policy=partial(make_policy, settings.policy, **dict(settings.policy_params)),
    )
    records = cluster.run(trace)
    for replica in cluster.replicas:
        replica.scheduler.check_integrity()
    return Window(
        rate=len(trace) / trace.duration_s,
        duration_s=trace.duration_s,
        policy=settings.policy,
        classes=summarise(
            [judge(record) for record in records],
            duration_s=trace.duration_s,
            targets=targets_of(classes),
        ),
        notes=trace.notes,
        facts=_facts(cluster, records, wall_s=time.perf_counter() - started_s),
    )


def find_capacity(
    scenario: Scenario, *, target: float, tolerance: float, start: float, repeats: int
) -> Capacity:
    """
    The highest rate (requests/s) whose windows, `repeats` a rate, hold `target` on average.

    All policies see the same requests: windows are paired by rate and repeat.
    """
    search = Search(start, target=target, tolerance=tolerance, confirm=False)
    while (rate := search.next_rate()) is not None:
        kept = eligible = 0
        for repeat in range(repeats):
            row = scenario.window(rate, repeat=repeat).all
            kept, eligible = kept + row.attained, eligible + row.eligible
        search.tell(rate, kept / max(1, eligible))
    return Capacity(
        scenario.settings.policy, target, search.rate, tuple(search.tried), search.found
    )


def in_parallel(tasks: list["partial[Capacity]"], *, processes: int) -> list[Capacity]:
    """Results of independent searches, in order; in this process when one is enough."""
    if processes <= 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(processes) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def _facts(cluster: Cluster, records: list[Record], *, wall_s: float) -> dict[str, object]:
    planning = sorted(s for replica in cluster.replicas for s in replica.planning_s)
    counters = [replica.scheduler.counters for replica in cluster.replicas]
    simulated_s = cluster.clock.now_s
    return {
        "simulated_s": simulated_s,
        "wall_s": wall_s,
        "speed": simulated_s * len(cluster.replicas) / wall_s,
        "requests_per_wall_s": len(records) / wall_s,
        "steps": sum(c.num_steps for c in counters),
        "busy_share": sum(r.busy_s for r in cluster.replicas)
        / max(simulated_s * len(cluster.replicas), 1e-9),
        "plan_p50_s": _at(planning, 0.5),
        "plan_p99_s": _at(planning, 0.99),
        "preemptions": sum(c.num_preemptions for c in counters),
        "relegated": sum(c.num_relegated for c in counters),
        "promoted": sum(c.num_promoted for c in counters),
        "late_tokens": sum(c.num_late_tokens for c in counters),
        "policy_errors": sum(c.num_policy_errors for c in counters),
        "accepted_drafts": sum(c.accepted_drafts for c in counters),
        "rejected_drafts": sum(c.rejected_drafts for c in counters),
        "strict": cluster.settings.strict,
    }


def _at(values: list[float], share: float) -> float:
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0
