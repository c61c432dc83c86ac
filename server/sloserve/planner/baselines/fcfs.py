"""
First come, first served: the order of vLLM V1 with chunked prefill. No deadlines, no refusals.

    for r in running, by admission:            decodes 1, unfinished prefills the rest, <= budget
        while no blocks for r: preempt the latest admitted (recompute; it keeps its tokens)
    if nothing was preempted:
        for r in waiting, by arrival, while budget is left and slots are: start it, chunked
            no blocks for its chunk: stop
"""

from sloserve.errors import Reason
from sloserve.planner.memory import blocks_for
from sloserve.planner.types import Plan, Probe, Row, Snapshot, Verdict
from sloserve.wire import Frontier


class Fcfs:
    """`max_batch_tokens` is the token budget of a step (None: the replica's limit)."""

    name = "fcfs"

    def __init__(self, *, max_batch_tokens: int | None = None) -> None:
        self.max_batch_tokens = max_batch_tokens

    def plan(self, snapshot: Snapshot) -> Plan:
        """The plan for the coming step."""
        limits = snapshot.limits
        size = limits.block_size
        budget = min(self.max_batch_tokens or limits.max_batch_tokens, limits.max_batch_tokens)
        free = snapshot.free_blocks
        running = [r for r in (*snapshot.running, *snapshot.best_effort) if _started(r)]
        back = [r for r in (*snapshot.running, *snapshot.best_effort) if not _started(r)]
        tokens: dict[int, int] = {}
        preempted: list[int] = []
        infeasible: dict[int, Verdict] = {}
        todo = list(running)
        while todo and budget > 0:
            row = todo.pop(0)
            count = min(row.num_left, budget)
            need = blocks_for(row.num_computed + count, size) - row.num_blocks
            while need > free and todo:
                victim = todo.pop()
                preempted.append(victim.id)
                free += victim.num_blocks
            if need > free:
                preempted.append(row.id)
                free += row.num_blocks
                break
            free -= max(0, need)
            tokens[row.id] = count
            budget -= count
        num_running = len(running) - len(preempted)
        admitted: list[int] = []
        if not preempted:
            for row in (*back, *snapshot.waiting):
                if budget <= 0 or num_running >= limits.max_running:
                    break
                if blocks_for(row.num_known + 1, size) > limits.num_blocks:
                    infeasible[row.id] = _too_long(row, snapshot)
                    continue
                count = min(row.num_left, budget)
                need = blocks_for(row.num_computed + count, size) - row.num_blocks
                if need > free:
                    break
                free -= max(0, need)
                tokens[row.id] = count
                budget -= count
                num_running += 1
                if not row.running:
                    admitted.append(row.id)
        for row in snapshot.waiting:
            if not row.may_wait and row.id not in tokens and row.id not in infeasible:
                admitted.append(row.id)  # it refuses nobody: the answer is yes
        waiting = {row.id for row in snapshot.waiting}
        return Plan(
            tokens=tokens,
            admitted=tuple(i for i in admitted if i in waiting),
            infeasible=infeasible,
            preempted=tuple(preempted),
        )

    def frontier(self, snapshot: Snapshot, probe: Probe) -> Frontier:
        """It admits whatever fits the pool."""
        return everything(snapshot, probe)

    def fork(self) -> "Fcfs":
        """Itself: it remembers nothing."""
        return self


def everything(snapshot: Snapshot, probe: Probe) -> Frontier:
    """The frontier of a policy that refuses nobody."""
    limits = snapshot.limits
    return Frontier(1, min(probe.max_prompt, limits.num_blocks * limits.block_size - 1))


def _started(row: Row) -> bool:
    """It holds blocks; a preempted or not yet started one does not."""
    return row.running and row.num_blocks > 0


def _too_long(row: Row, snapshot: Snapshot) -> Verdict:
    limits = snapshot.limits
    return Verdict(
        Reason.KV,
        f"{row.num_known} tokens never fit {limits.num_blocks} blocks of {limits.block_size}",
        0.0,
        0.0,
    )
