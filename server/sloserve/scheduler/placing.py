"""From a plan's tokens to the rows of a batch: who gets blocks, and who gives way."""

from collections.abc import Mapping

from sloserve.scheduler.batch import BatchRow
from sloserve.scheduler.counters import Counters
from sloserve.scheduler.holdings import Holdings
from sloserve.scheduler.queues import Queues
from sloserve.scheduler.request import Request, Status


class Placing:
    """
    Starts, grows and preempts requests, so that the plan's rows have their blocks.

    A sound plan finds its blocks. For one that does not, somebody without a promise gives way,
    or the row is dropped: counted as the policy's error, never a crash.
    """

    def __init__(
        self,
        requests: Mapping[int, Request],
        queues: Queues,
        holdings: Holdings,
        counters: Counters,
    ) -> None:
        self._requests = requests
        self._queues = queues
        self._holdings = holdings
        self._counters = counters

    def fill(self, tokens: Mapping[int, int], *, plan: int) -> tuple[list[BatchRow], int]:
        """
        The rows of plan number `plan` with their blocks, and how many found none and were
        dropped.

        A request without a decision may compute, but not emit: its first token comes after its
        promise.
        """
        starting = [i for i in tokens if i in self._holdings.unstarted]
        for request_id in starting:  # before anyone allocates: that could evict the prefix
            self._start(self._requests[request_id])
        rows: list[BatchRow] = []
        placed: set[int] = set()
        num_starved = 0
        requests, block_size = self._requests, self._holdings.pool.block_size
        running = Status.RUNNING
        for request_id, count in tokens.items():  # per row and step: kept lean
            request = requests.get(request_id)
            if request is None or count <= 0:
                self._counters.num_policy_errors += 1
                continue
            if request.status is not running:
                continue
            row = request.row
            start, known = row.num_computed, row.num_known
            end = min(start + count, known)
            if end == known and request.decision is None:
                self._counters.num_policy_errors += 1
                continue
            short = end > row.num_blocks * block_size
            if short and not self._grow(request, end, placed):
                num_starved += 1
                continue
            placed.add(request_id)
            decodes = row.num_output > 0 and known - start == 1
            rows.append(BatchRow(request, start, end - start, end == known, decodes))
        for request_id in starting:
            request = self._requests[request_id]
            if request_id in placed:
                request.begun_at_plan = request.begun_at_plan or plan
            elif request.status is Status.RUNNING:  # in vain: give the prefix back
                self._give_up(request)
        return rows, num_starved

    def preempt(self, request: Request) -> None:
        """Drop its blocks for others; its tokens are kept, and computed again later."""
        self._give_up(request)
        request.num_preemptions += 1
        self._counters.num_preemptions += 1

    def break_deadlock(self) -> bool:
        """
        Nothing runs, and somebody holds blocks that others need: the last one gives its own up.
        False: nobody has any. A policy that sees to this itself never gets here.
        """
        for row in (*self._queues.without_promise(), *reversed(self._queues.promised_rows)):
            if row.id not in self._holdings.unstarted:
                self._counters.num_policy_errors += 1
                self.preempt(self._requests[row.id])
                return True
        return False

    def _start(self, request: Request) -> None:
        self._holdings.start(request)
        request.row.running = request.decision is not None
        if request.reuse_prefix and request.num_output == 0 and request.num_preemptions == 0:
            request.num_cached = request.num_computed
            self._holdings.pool.num_queried_tokens += request.num_prompt
            self._holdings.pool.num_hit_tokens += request.num_cached

    def _give_up(self, request: Request) -> None:
        self._holdings.give_up(request)
        request.row.running = request.id in self._queues.promised

    def _grow(self, request: Request, num_tokens: int, placed: set[int]) -> bool:
        """Hold blocks for so many tokens; who has no promise gives way, the latest first."""
        if self._holdings.grow(request, num_tokens):
            return True
        self._counters.num_policy_errors += 1
        for row in self._queues.without_promise():
            victim = self._requests[row.id]
            if victim.blocks and row.id not in placed and victim is not request:
                self.preempt(victim)
                if self._holdings.grow(request, num_tokens):
                    return True
        return False
