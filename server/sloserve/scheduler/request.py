"""One request's state, and the moves it may make."""

from dataclasses import dataclass, field
from enum import StrEnum

from sloserve.planner import Tier
from sloserve.slo import Decision, Promise, TokenDeadlines


class Status(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"  # no decision yet, or preempted
    RUNNING = "running"
    FINISHED = "finished"
    DECLINED = "declined"
    CANCELLED = "cancelled"


MOVES = {  # anything else is a bug, and asserts
    Status.WAITING: {Status.RUNNING, Status.DECLINED, Status.CANCELLED},
    Status.RUNNING: {Status.WAITING, Status.FINISHED, Status.CANCELLED},  # back = preempted
    Status.FINISHED: set(),
    Status.DECLINED: set(),
    Status.CANCELLED: set(),
}


@dataclass(slots=True, eq=False)
class Request:
    """
    A request as the scheduler owns it. Times are on the monotonic clock given to the scheduler.

    `tokens` holds prompt and output; `num_computed` of them have keys and values in `blocks`.
    """

    id: int
    promise: Promise
    arrival_s: float
    tokens: list[int]
    num_prompt: int
    max_output: int
    last_hop: bool = True  # False: decline at once rather than defer or degrade
    cache_salt: str = ""  # extra key of the prefix hash (adapter, model)
    reuse_prefix: bool = True
    status: Status = Status.WAITING
    tier: Tier = Tier.PROMISED
    decision: Decision | None = None
    num_computed: int = 0
    num_cached: int = 0  # prompt tokens that came from the prefix cache
    blocks: list[int] = field(default_factory=list)
    stage: int = 0
    num_preemptions: int = 0
    deadlines: TokenDeadlines = field(init=False)

    def __post_init__(self) -> None:
        self.deadlines = TokenDeadlines(self.promise, arrival_s=self.arrival_s)

    @property
    def num_output(self) -> int:
        """Tokens emitted so far."""
        return len(self.tokens) - self.num_prompt

    def move(self, to: Status) -> None:
        """Change the status; an unlisted move is a bug."""
        assert to in MOVES[self.status], f"request {self.id}: {self.status} -> {to}"
        self.status = to
