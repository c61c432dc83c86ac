"""One request's state, and the moves it may make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sloserve.planner import Row, Tier
from sloserve.slo import Bank, Decision, Promise, TokenDeadlines


class Status(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"  # holds no blocks: not started, or preempted
    RUNNING = "running"
    FINISHED = "finished"
    DECLINED = "declined"
    CANCELLED = "cancelled"
    FAILED = "failed"


MOVES = {  # anything else is a bug, and asserts
    Status.WAITING: {Status.RUNNING, Status.DECLINED, Status.CANCELLED, Status.FAILED},
    Status.RUNNING: {  # back to waiting = preempted
        Status.WAITING,
        Status.FINISHED,
        Status.DECLINED,  # its prefill had begun, but no promise was made
        Status.CANCELLED,
        Status.FAILED,
    },
    Status.FINISHED: set(),
    Status.DECLINED: set(),
    Status.CANCELLED: set(),
    Status.FAILED: set(),
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
    draft_group: str = ""  # requests whose drafts fare alike: class, temperature, grammar
    num_fitting: Callable[[Sequence[int]], int] | None = None
    """How many of some drafts, from the first on, its answer may hold; None: all of them."""
    reuse_prefix: bool = True
    streamed: bool = True  # False: judged as a whole, at its end
    known_output: int | None = None  # the oracle's output length; only a simulator knows it
    status: Status = Status.WAITING
    tier: Tier = Tier.PROMISED
    decision: Decision | None = None
    promoted: bool = False  # was degraded or relegated, and got its promise back
    num_computed: int = 0
    num_cached: int = 0  # prompt tokens that came from the prefix cache
    blocks: list[int] = field(default_factory=list)
    stage: int = 0  # of the coming token
    num_preemptions: int = 0
    num_late_after_first: int = 0
    ttft_kept: bool = False
    answer_due_s: float = 0.0  # when the answer so far is due as a whole
    chain: list[bytes] = field(default_factory=list)  # hashes of its full blocks, as far as known
    num_published: int = 0  # blocks offered to the prefix cache
    added_at_plan: int = 0  # plans made before it came
    begun_at_plan: int = 0  # the plan that first ran it; 0: none yet
    in_flight: bool = False  # in the step that runs now
    deadlines: TokenDeadlines = field(init=False)
    row: Row = field(init=False)
    """The planner's view, kept up to date by the scheduler."""

    def __post_init__(self) -> None:
        self.deadlines = TokenDeadlines(self.promise, arrival_s=self.arrival_s)
        self.answer_due_s = self.arrival_s + self.promise.ttft_s
        num_known = len(self.tokens)
        self.row = Row(
            id=self.id,
            tier=self.tier,
            arrival_s=self.arrival_s,
            num_known=num_known,
            num_computed=0,
            num_output=num_known - self.num_prompt,
            due_s=self.deadlines.due_s,
            tpot_s=self.promise.tpot_s(0),
            tightest_tpot_s=min(stage.tpot_s for stage in self.promise.stages),
            anchored=self.promise.bank is Bank.PROMISE,
            expected_output=float(self.max_output),
            expected_sd=0.0,
            max_output=self.max_output,
            weight=self.promise.weight,
            num_blocks=0,
            running=False,
            may_wait=self.last_hop,
            slo_class=self.promise.slo_class,
        )

    @property
    def num_output(self) -> int:
        """Tokens emitted so far."""
        return len(self.tokens) - self.num_prompt

    def kept_so_far(self, now_s: float) -> bool:
        """No due time passed unkept until `now_s`."""
        if not self.streamed:
            return now_s <= self.answer_due_s
        return self.deadlines.kept and now_s <= self.deadlines.due_s

    def move(self, to: Status) -> None:
        """Change the status; an unlisted move is a bug."""
        assert to in MOVES[self.status], f"request {self.id}: {self.status} -> {to}"
        self.status = to
