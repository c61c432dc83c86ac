"""Where a live request stands: undecided, promised or best effort. In exactly one of them."""

from bisect import bisect_left
from collections.abc import Iterator

from sloserve.planner import Row, Tier
from sloserve.scheduler.request import Request


def _order(row: Row) -> tuple[float, int]:
    return row.arrival_s, row.id


class ArrivalQueue:
    """Rows by (arrival, id): an arrival may lie in the past, so the order is not that of adding."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Insert a row at its place."""
        self.rows.insert(bisect_left(self.rows, _order(row), key=_order), row)

    def remove(self, row: Row) -> None:
        """Take out a row that is in here."""
        index = bisect_left(self.rows, _order(row), key=_order)
        assert self.rows[index] is row, f"request {row.id} is not in this queue"
        del self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


class Queues:
    """The rows as a snapshot lists them; tier and `running` of each row follow from its queue."""

    def __init__(self) -> None:
        self.waiting = ArrivalQueue()
        self.best_effort = ArrivalQueue()
        self.promised: dict[int, Row] = {}
        self._promised_rows: list[Row] | None = None  # the same as a list, until it changes

    @property
    def promised_rows(self) -> list[Row]:
        """Promised rows by admission."""
        if self._promised_rows is None:
            self._promised_rows = list(self.promised.values())
        return self._promised_rows

    def without_promise(self) -> list[Row]:
        """Who gives way when blocks run out: best effort, then the undecided, latest first."""
        return [*reversed(self.best_effort.rows), *reversed(self.waiting.rows)]

    def wait(self, request: Request) -> None:
        """A new request that wants its promise."""
        self.waiting.add(request.row)

    def promise(self, request: Request) -> None:
        """It runs under its promise from now on. Must be in no queue."""
        request.tier = request.row.tier = Tier.PROMISED
        request.row.running = True
        self.promised[request.id] = request.row
        self._promised_rows = None

    def serve_best_effort(self, request: Request) -> None:
        """It has no promise from now on. Must be in no queue."""
        request.tier = request.row.tier = Tier.BEST_EFFORT
        request.row.running = bool(request.blocks)
        self.best_effort.add(request.row)

    def remove(self, request: Request) -> None:
        """Out of the queue it is in."""
        if self.promised.pop(request.id, None) is not None:
            self._promised_rows = None
        elif request.decision is None:
            self.waiting.remove(request.row)
        else:
            self.best_effort.remove(request.row)

    def check_integrity(self, requests: dict[int, Request]) -> None:
        """Every live request is in one queue, and its row says so. Asserts."""
        rows = [*self.promised.values(), *self.waiting, *self.best_effort]
        assert sorted(row.id for row in rows) == sorted(requests)
        for row in rows:
            request = requests[row.id]
            assert row is request.row
            assert row.tier is request.tier
            assert (row.tier is Tier.PROMISED) == (
                row.id in self.promised or request.decision is None
            )
