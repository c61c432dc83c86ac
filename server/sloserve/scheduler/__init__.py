"""Owns the state of every request and the accounting of KV blocks."""

from sloserve.scheduler.batch import Batch, BatchRow, Outcome
from sloserve.scheduler.blocks import BlockPool
from sloserve.scheduler.counters import Counters, Ending
from sloserve.scheduler.prefix import salt_of
from sloserve.scheduler.request import MOVES, Request, Status
from sloserve.scheduler.scheduler import PromiseBroken, Scheduler
from sloserve.scheduler.speculating import Drafter, Proposal, RunnerDrafts, Speculating

__all__ = [
    "MOVES",
    "Batch",
    "BatchRow",
    "BlockPool",
    "Counters",
    "Drafter",
    "Ending",
    "Outcome",
    "PromiseBroken",
    "Proposal",
    "Request",
    "RunnerDrafts",
    "Scheduler",
    "Speculating",
    "Status",
    "salt_of",
]
