"""Owns the state of every request and the accounting of KV blocks."""

from sloserve.scheduler.batch import Batch, BatchRow, Outcome
from sloserve.scheduler.blocks import BlockPool
from sloserve.scheduler.counters import Counters, Ending
from sloserve.scheduler.request import MOVES, Request, Status
from sloserve.scheduler.scheduler import PromiseBroken, Scheduler

__all__ = [
    "MOVES",
    "Batch",
    "BatchRow",
    "BlockPool",
    "Counters",
    "Ending",
    "Outcome",
    "PromiseBroken",
    "Request",
    "Scheduler",
    "Status",
]
