"""
Earliest deadline first on chunked prefill, in the manner of QoServe, with and without dropping.

    all promised decodes go in; slack = least (due - now) among them
    tokens of the step = the largest multiple of `grid_tokens` up to `max_batch_tokens` with
        safety * T(step) <= slack, at least `min_batch_tokens`
    prefills by (due + alpha * remaining tokens); a prompt's blocks are taken whole at its start
    no blocks for a decode: preempt the latest arrival (recompute)

`edf` serves everything. `edf-drop` is the strongest simple baseline: it rejects at once who can't
make its first token even with the whole prefill pace to itself, and gives up who has missed or
can only miss; those then run in what is left over.
"""

from math import inf

from sloserve.errors import Reason
from sloserve.planner.baselines.fcfs import everything
from sloserve.planner.memory import blocks_for
from sloserve.planner.types import Plan, Probe, Row, Snapshot, Verdict
from sloserve.wire import Frontier


class Edf:
    """
    `alpha_s` (seconds per remaining token) leans towards short prompts; 0 is plain EDF.

    `safety` multiplies predictions before they are held against slack.
    """

    def __init__(
        self,
        *,
        drop: bool = False,
        max_batch_tokens: int = 512,
        min_batch_tokens: int = 128,
        grid_tokens: int = 64,
        alpha_s: float = 0.0,
        safety: float = 1.2,
    ) -> None:
        self.name = "edf-drop" if drop else "edf"
        self.drop = drop
        self.max_batch_tokens = max_batch_tokens
        self.min_batch_tokens = min_batch_tokens
        self.grid_tokens = grid_tokens
        self.alpha_s = alpha_s
        self.safety = safety

    def plan(self, snapshot: Snapshot) -> Plan:
        """The plan for the coming step."""
        now, model, limits = snapshot.now_s, snapshot.model, snapshot.limits
        size = limits.block_size
        free = snapshot.free_blocks
        relegated: list[int] = []
        decodes: list[Row] = []
        prefills: list[Row] = []
        slack_s, context = inf, 0
        for row in snapshot.running:
            if self.drop and (row.due_s < now or not row.kept):
                relegated.append(row.id)
            elif row.decodes:
                decodes.append(row)
                slack_s = min(slack_s, row.due_s - now)
                context += row.num_known
            else:
                prefills.append(row)

        # blocks of the decodes; the latest arrivals give way
        tokens: dict[int, int] = {}
        preempted: list[int] = []
        holders = sorted(
            (r for r in (*decodes, *prefills) if r.num_blocks), key=lambda r: r.arrival_s
        )
        spare = [r for r in snapshot.best_effort if r.num_blocks]
        gone: set[int] = set()
        for row in sorted(decodes, key=lambda r: r.arrival_s):
            if row.id in gone:
                continue
            need = blocks_for(row.num_known, size) - row.num_blocks
            while need > free and (spare or holders):
                victim = spare.pop() if spare else holders.pop()
                gone.add(victim.id)
                preempted.append(victim.id)
                free += victim.num_blocks
                tokens.pop(victim.id, None)
            if row.id not in gone and need <= free:
                free -= max(0, need)
                tokens[row.id] = 1

        # how many tokens in all
        num_decodes = len(tokens)
        allowed_s = slack_s / self.safety
        most = model.max_chunk(
            allowed_s, num_tokens=num_decodes, context=float(context), pairs=0.0, prior=0
        )
        total = min(num_decodes + most, self.max_batch_tokens, limits.max_batch_tokens)
        total = max(total // self.grid_tokens * self.grid_tokens, self.min_batch_tokens)
        budget = min(total, limits.max_batch_tokens) - num_decodes
        pace_s = model.step_s(max(total, 1), context=float(context)) / max(1, budget)

        # prefills by priority
        infeasible: dict[int, Verdict] = {}
        queue: list[tuple[float, int, Row]] = []
        for row in (*prefills, *snapshot.waiting):
            if row.id in gone:
                continue
            needed_s = model.d * row.num_left * (row.num_computed + row.num_left / 2)
            needed_s += pace_s * row.num_left
            if self.drop and now + needed_s > row.due_s:
                if row.running:
                    relegated.append(row.id)
                else:
                    infeasible[row.id] = _hopeless(row, now, needed_s)
                continue
            queue.append((row.due_s + self.alpha_s * row.num_left, row.id, row))
        queue.sort()
        admitted: list[int] = []
        num_running = sum(r.num_blocks > 0 for r in (*snapshot.running, *snapshot.best_effort))
        for _, _, row in queue:
            fresh = not row.running or row.num_blocks == 0
            if budget > 0 and not preempted and (not fresh or num_running < limits.max_running):
                whole = blocks_for(row.num_known, size) - row.num_blocks
                if whole <= free - (limits.num_blocks // 100 if fresh else 0):
                    free -= max(0, whole)
                    count = min(budget, row.num_left)
                    tokens[row.id] = count
                    budget -= count
                    num_running += fresh
                    if not row.running:
                        admitted.append(row.id)
                    continue
            if not row.may_wait and not row.running:
                admitted.append(row.id)

        # what is left over
        for row in snapshot.best_effort:
            if budget <= 0:
                break
            if row.id in gone:
                continue
            count = min(budget, row.num_left)
            fresh = row.num_blocks == 0
            need = blocks_for(row.num_known, size) - row.num_blocks
            if need > free - (limits.num_blocks // 100 if fresh else 0):
                continue
            if fresh and num_running >= limits.max_running:
                continue
            free -= max(0, need)
            num_running += fresh
            tokens[row.id] = count
            budget -= count
        return Plan(
            tokens=tokens,
            admitted=tuple(admitted),
            infeasible=infeasible,
            relegated=tuple(relegated),
            preempted=tuple(preempted),
        )

    def frontier(self, snapshot: Snapshot, probe: Probe) -> Frontier:
        """It looks at one request at a time: whatever fits the pool."""
        return everything(snapshot, probe)

    def fork(self) -> "Edf":
        """Itself: it remembers nothing."""
        return self


def _hopeless(row: Row, now_s: float, needed_s: float) -> Verdict:
    left_s = max(0.0, row.due_s - now_s)
    return Verdict(
        Reason.TTFT,
        f"needs the first token in {left_s:.3f} s, its prefill alone takes {needed_s:.3f} s",
        needed_s,
        max(0.05, needed_s - (row.due_s - row.arrival_s)),
    )
