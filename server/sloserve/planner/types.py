"""
A snapshot in, a plan out: the values every policy speaks.

Times are seconds on one monotonic clock; sizes are tokens and blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Protocol

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.wire import Frontier


class Tier(IntEnum):
    """Whether a request has a promise."""

    PROMISED = 0
    BEST_EFFORT = 1


@dataclass(slots=True)
class Row:
    """
    What the planner knows of one request at the start of the coming step.

    A request is prefilling while `known - computed > 1`, or while it has no output yet; it
    decodes when exactly one known token (its latest) is not computed. The last chunk of a
    prefill emits a token at the end of its step.
    """

    id: int
    tier: Tier
    arrival_s: float
    num_known: int  # prompt tokens + emitted tokens
    num_computed: int  # tokens whose keys and values are in the cache (0 after a preemption)
    num_output: int  # emitted tokens
    due_s: float  # when the next token is due
    tpot_s: float  # added for each token after it (this stage)
    tightest_tpot_s: float  # the least over this stage and the later ones
    anchored: bool  # True: the next due times don't move; False: first token re-anchors them
    expected_output: float  # mean of the tokens still to come, given what is known
    expected_sd: float  # its standard deviation
    max_output: int  # tokens still to come at most
    weight: float
    num_blocks: int  # KV blocks held now
    running: bool  # already holds its promise (or is already served best-effort)
    may_wait: bool = True  # False: answer at once, admitted or infeasible (not the last hop)
    slo_class: str = ""
    kept: bool = True  # no token was late so far

    @property
    def num_left(self) -> int:
        """Known tokens that are not computed: the rest of the prefill, or 1 for a decode."""
        return self.num_known - self.num_computed

    @property
    def decodes(self) -> bool:
        """Whether one more computed token emits one."""
        return self.num_output > 0 and self.num_left == 1

    def copied(self) -> "Row":
        """The same values in a row of its own."""
        twin = Row.__new__(Row)  # dataclasses.replace and copy.copy take three times as long
        for name in Row.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin


@dataclass(frozen=True, slots=True)
class Limits:
    """Fixed limits of one replica."""

    block_size: int
    num_blocks: int
    max_running: int = 256
    max_batch_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a policy may look at. `model` is the corrected step model."""

    now_s: float
    model: StepModel
    margin_s: float  # subtracted from every deadline: model error + the way out to the client
    limits: Limits
    free_blocks: int  # free or reclaimable (cached and unowned)
    running: Sequence[Row]  # promised requests that run, in order of admission
    waiting: Sequence[Row]  # promised requests that wait for admission, in order of arrival
    best_effort: Sequence[Row]  # requests without a promise, in order of arrival
    excess_share: float = 0.0  # what steps take beyond the model's word, on average
    tentative: bool = True  # the owner also runs chunks of those who still wait (see Plan)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a promise can't be kept, and when it could (seconds from now)."""

    reason: Reason
    message: str
    earliest_first_token_s: float
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What the next step runs, and what becomes of those who wait.

    `tokens` maps request id to tokens computed in this step, in batch order. A waiting request
    that is neither `admitted` nor `infeasible` keeps waiting (deferred). With
    `Snapshot.tentative` it may have tokens all the same, up to the one before its first output:
    its prefill goes on while its promise is still open. The owner of the state frees `preempted`
    first (blocks dropped, tokens kept), then applies the rest.
    """

    tokens: dict[int, int] = field(default_factory=dict)
    predicted_s: float = 0.0
    admitted: tuple[int, ...] = ()
    infeasible: dict[int, Verdict] = field(default_factory=dict)
    relegated: tuple[int, ...] = ()  # promised and running, whose promise is lost
    promoted: tuple[int, ...] = ()  # best-effort requests that get their promise after all
    preempted: tuple[int, ...] = ()
    room_s: float = inf  # the step may last so long and nobody is worse off: drafts may fill it


class Policy(Protocol):
    """
    Decides what runs. It may remember its own earlier plans, and nothing else.

    `plan` is called between steps with the state at the start of the coming step. An empty
    `tokens` means there is nothing to run now.
    """

    name: str

    def plan(self, snapshot: Snapshot) -> Plan:
        """The plan for the coming step."""
        ...

    def frontier(self, snapshot: Snapshot, probe: "Probe") -> Frontier:
        """The prompt lengths of a class that would be admitted at `snapshot.now_s`."""
        ...

    def fork(self) -> "Policy":
        """One that remembers the same and goes its own way: to plan what may never come."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """A class as the frontier asks about it: TTFT as a line over prompt length, then the pace."""

    slo_class: str
    ttft_fixed_s: float  # ttft(p) = max(floor, fixed + per_token*p + per_pair*p*p/2)
    ttft_per_token_s: float
    ttft_per_pair_s: float
    ttft_floor_s: float
    tpot_s: float
    tightest_tpot_s: float
    expected_output: float
    expected_sd: float
    max_prompt: int
    weight: float = 1.0
