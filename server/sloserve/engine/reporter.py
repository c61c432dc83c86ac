"""The replica's report, renewed a little at a time so that no step waits for it."""

from dataclasses import replace

from sloserve.engine.runner import ModelFacts
from sloserve.scheduler import Scheduler
from sloserve.scheduler.report import earliest_first_token_s, token_supply_per_s, zero_load_line
from sloserve.wire import Report

PERIOD_S = 0.05
"""While steps run, the report is at most about this old (one class is renewed at a time)."""


class Reporter:
    """
    Keeps `report` fresh: `refresh` renews the figures and one class's frontier a call.

    Called by the loop between steps; `report` is replaced as a whole, so any thread may read it.
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
        self._fresh_at: dict[str, int] = {}  # class -> scheduler.version of its frontier
        self._next_s = 0.0
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

    def set_generation(self, generation: int) -> None:
        """The manifest's generation that is in force now."""
        self.report = replace(self.report, config_generation=generation)

    def refresh(self, now_s: float) -> bool:
        """Renew one class and the figures if it is time to; False if nothing was done."""
        if now_s < self._next_s:
            return False
        return self.refresh_now(now_s)

    def refresh_now(self, now_s: float) -> bool:
        """Renew what is not fresh, one class a call; False when all is fresh."""
        scheduler, version = self._scheduler, self._scheduler.version
        stale = [name for name in scheduler.classes if self._fresh_at.get(name) != version]
        if not stale:
            return False
        name = min(stale, key=lambda name: self._fresh_at.get(name, -1))
        slo_class = scheduler.classes[name]
        old = self.report
        frontier = {k: v for k, v in old.frontier.items() if k in scheduler.classes}
        frontier |= scheduler.frontier(now_s, [slo_class])
        earliest_s = {k: v for k, v in old.earliest_first_token_s.items() if k in frontier}
        self._fresh_at[name] = version
        self._next_s = now_s + self._period_s / len(scheduler.classes)
        snapshot = scheduler.snapshot(now_s)
        median = scheduler.laws.median_prompt(name)
        earliest_s[name] = earliest_first_token_s(snapshot, num_prompt=median)
        waiting = [*snapshot.running, *snapshot.waiting]
        self.report = replace(
            self.report,
            frontier=frontier,
            earliest_first_token_s=earliest_s,
            tightest_tpot_s=min((row.tightest_tpot_s for row in snapshot.running), default=0.0),
            token_supply_per_s=token_supply_per_s(snapshot),
            free_blocks=snapshot.free_blocks,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            waiting_prefill_tokens=sum(row.num_left for row in waiting if not row.decodes),
        )
        return True
