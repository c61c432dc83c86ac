"""
The replica's report, made beside the steps: no step waits for it.

A frontier takes some feasibility runs, milliseconds in all. Between two steps that would be a
hiccup that promises pay for (it was 6 ms at p99 with 32 streams), so a helper thread works on a
copy of the state while the step runs.
"""

import logging
import queue
import threading
import time
from dataclasses import dataclass, replace

from sloserve.engine.runner import ModelFacts
from sloserve.planner import Policy, Probe, Snapshot
from sloserve.scheduler import Scheduler
from sloserve.scheduler.report import earliest_first_token_s, token_supply_per_s, zero_load_line
from sloserve.wire import Report

log = logging.getLogger(__name__)

PERIOD_S = 0.05
"""While steps run, one class is renewed at most this often, and in turn."""
MAX_SHARE = 0.05
"""Of one core's time that the helper may take while steps run."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A copy of the state, and what to ask of it. `probes` by class, with its median prompt."""

    snapshot: Snapshot
    policy: Policy
    probes: dict[str, tuple[Probe, int]]
    classes: frozenset[str]  # that exist now
    generation: int
    num_running: int
    num_waiting: int


class Reporter:
    """
    Keeps `report` fresh. `offer` is called by the engine's thread; any thread may read `report`,
    which is replaced as a whole.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        facts: ModelFacts,
        *,
        service: str = "",
        replica: str = "",
        config_generation: int = 0,
        period_s: float = PERIOD_S,
    ) -> None:
        self._scheduler = scheduler
        self._period_s = period_s
        self._generation = config_generation
        self._fresh_at: dict[str, int] = {}  # class -> scheduler.version of its frontier
        self._next_s = 0.0
        self._busy = False
        self._cost_s = 0.0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sloserve-report", daemon=True)
        fixed_s, per_token_s = zero_load_line(scheduler.model)
        self.report = Report(
            service=service,
            replica=replica,
            state="ready",
            total_blocks=facts.num_blocks,
            zero_load_fixed_s=fixed_s,
            zero_load_per_token_s=per_token_s,
            config_generation=config_generation,
        )

    def start(self, now_s: float) -> None:
        """
        Make the first report, then start the helper. Nobody may see a replica that is ready and
        has no frontier: gateways would take it for one that fits nothing.
        """
        self.offer(now_s, idle=True)
        if self._busy:
            job = self._jobs.get()
            assert job is not None
            self._make(job)
        self._thread.start()

    def stop(self) -> None:
        """End the helper after what it does now."""
        self._jobs.put(None)

    def set_generation(self, generation: int) -> None:
        """The manifest's generation that is in force now."""
        self._generation = generation

    @property
    def fresh(self) -> bool:
        """Whether the report tells the present state (as far as it depends on no clock)."""
        return not self._busy and not self._stale()

    def offer(self, now_s: float, *, idle: bool = False) -> None:
        """
        Let the helper renew the report if it is time to: the class that waited longest, or, when
        the engine is `idle`, every class that is not fresh.
        """
        if self._busy or (now_s < self._next_s and not idle):
            return
        stale = self._stale()
        if not stale:
            return
        scheduler = self._scheduler
        if not idle:
            stale = [min(stale, key=lambda name: self._fresh_at.get(name, -1))]
        for name in stale:
            self._fresh_at[name] = scheduler.version
        pause_s = max(self._period_s / len(scheduler.classes), self._cost_s / MAX_SHARE)
        self._next_s = now_s + pause_s
        self._busy = True
        self._jobs.put(
            _Job(
                snapshot=_copy(scheduler.snapshot(now_s)),
                policy=scheduler.policy,
                probes={
                    name: (
                        scheduler.probe(scheduler.classes[name]),
                        scheduler.laws.median_prompt(name),
                    )
                    for name in stale
                },
                classes=frozenset(scheduler.classes),
                generation=self._generation,
                num_running=scheduler.num_running,
                num_waiting=scheduler.num_waiting,
            )
        )

    def _stale(self) -> list[str]:
        version = self._scheduler.version
        return [name for name in self._scheduler.classes if self._fresh_at.get(name) != version]

    # --- the helper ---------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._make(job)

    def _make(self, job: _Job) -> None:
        started_s = time.thread_time()
        try:
            self.report = self._renewed(job)
        except Exception:
            log.exception("a report failed; the last one stands")
        self._cost_s = time.thread_time() - started_s
        self._busy = False

    def _renewed(self, job: _Job) -> Report:
        old, snapshot = self.report, job.snapshot
        frontier = {name: f for name, f in old.frontier.items() if name in job.classes}
        earliest_s = {k: s for k, s in old.earliest_first_token_s.items() if k in job.classes}
        for name, (probe, median_prompt) in job.probes.items():
            frontier[name] = job.policy.frontier(snapshot, probe)
            earliest_s[name] = earliest_first_token_s(snapshot, num_prompt=median_prompt)
        prefills = [row for row in (*snapshot.running, *snapshot.waiting) if not row.decodes]
        return replace(
            old,
            frontier=frontier,
            earliest_first_token_s=earliest_s,
            tightest_tpot_s=min((row.tightest_tpot_s for row in snapshot.running), default=0.0),
            token_supply_per_s=token_supply_per_s(snapshot),
            free_blocks=snapshot.free_blocks,
            num_running=job.num_running,
            num_waiting=job.num_waiting,
            waiting_prefill_tokens=sum(row.num_left for row in prefills),
            config_generation=job.generation,
        )


def _copy(snapshot: Snapshot) -> Snapshot:
    """The same snapshot with rows that stay as they are."""
    return replace(
        snapshot,
        running=[row.copied() for row in snapshot.running],
        waiting=[row.copied() for row in snapshot.waiting],
        best_effort=[row.copied() for row in snapshot.best_effort],
    )
