"""What goes into the loop and what comes out of it."""

from dataclasses import dataclass

from sloserve.engine.runner import Logprobs
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import Reason
from sloserve.slo import Decision, Promise


@dataclass(frozen=True, slots=True)
class Generate:
    """
    One sequence to generate. `arrival_s` is on the loop's own monotonic clock, and may lie in
    the past (the age a gateway told).
    """

    key: str  # unique in this process
    prompt: list[int]
    sampling: SamplingParams
    promise: Promise
    arrival_s: float
    last_hop: bool = True
    cache_salt: str = ""
    adapter: str = ""  # one of the model's; empty: the model as it is
    streamed: bool = True  # False: its promise is judged as a whole, at the end
    request_id: str = ""  # the client's, for log lines; several sequences may share it


@dataclass(frozen=True, slots=True)
class Decided:
    """
    The first event of every request: what becomes of its promise. Declined is also its last.

    A second one may follow before the first Chunk: a degraded request that got its promise back
    is deferred.
    """

    decision: Decision
    reason: Reason = Reason.NONE
    message: str = ""
    retry_after_s: float = 0.0


@dataclass(slots=True)
class Chunk:
    """
    Newly visible output. Tokens held back (incomplete UTF-8, a possible stop string) come later,
    so `text` may be empty while `token_ids` is not, and the other way round at the end.

    A value, not frozen only because one is made per token, and that would be four times slower.
    """

    text: str
    token_ids: tuple[int, ...]
    stage: int
    emitted_s: float
    num_output: int  # output tokens so far, these included
    num_cached: int  # prompt tokens found in the prefix cache
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()  # on the first chunk, when asked for
    finish_reason: str | None = None  # "stop", "length"; None: more to come
    stop_reason: str | int | None = None  # the stop string or token id that ended it
    num_preempted: int = 0  # with finish_reason: how often it gave way to others


@dataclass(frozen=True, slots=True)
class Broken:
    """The request ends without an answer: the loop failed, or dropped it with a reason."""

    reason: Reason
    message: str


Event = Decided | Chunk | Broken
