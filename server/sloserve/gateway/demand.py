"""What a class asked of this gateway in the last minute: the input of autoscaling."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sloserve.errors import Reason
from sloserve.slo import Decision

BUCKET_S = 5.0
NUM_BUCKETS = 12
CAPACITY = (
    Reason.TTFT, Reason.TPOT, Reason.KV, Reason.REPLICAS, Reason.LOADING, Reason.QUEUE_FULL,
)  # fmt: skip
"""What more replicas would help against."""


@dataclass(slots=True)
class Demand:
    """Requests and tokens of one class over some time."""

    num_arrived: int = 0
    prompt_tokens: int = 0
    """Of all that arrived, as estimated on arrival."""
    num_answered: int = 0
    output_tokens: int = 0
    """Of those answered, in full or in part."""
    num_declined: int = 0
    """Ended without an answer for want of capacity."""
    num_degraded: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why requests were declined or degraded."""

    def add(self, other: "Demand") -> None:
        """Count another one's in."""
        self.num_arrived += other.num_arrived
        self.prompt_tokens += other.prompt_tokens
        self.num_answered += other.num_answered
        self.output_tokens += other.output_tokens
        self.num_declined += other.num_declined
        self.num_degraded += other.num_degraded
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count


class RecentDemand:
    """Demand in buckets of 5 s, over the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[int, Demand] = {}

    def arrived(self, num_prompt: int) -> None:
        """A request of so many prompt tokens is here."""
        bucket = self._bucket()
        bucket.num_arrived += 1
        bucket.prompt_tokens += num_prompt

    def ended(self, *, decision: str, outcome: str, reason: Reason, num_output: int) -> None:
        """A request is over."""
        bucket = self._bucket()
        refused = outcome in ("refused", "failed") and reason in CAPACITY
        declined = refused or decision == Decision.DECLINED
        degraded = decision == Decision.DEGRADED
        if declined or degraded:
            bucket.num_declined += declined
            bucket.num_degraded += degraded and not declined
            bucket.reasons[reason.value] = bucket.reasons.get(reason.value, 0) + 1
        if num_output:
            bucket.num_answered += 1
            bucket.output_tokens += num_output

    def last_minute(self) -> Demand:
        """The sum of the live buckets."""
        least, total = self._number() - NUM_BUCKETS, Demand()
        for number, bucket in self._buckets.items():
            if number > least:
                total.add(bucket)
        return total

    def _number(self) -> int:
        return int(self._clock() / BUCKET_S)

    def _bucket(self) -> Demand:
        number = self._number()
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = Demand()
            for old in [n for n in self._buckets if n <= number - NUM_BUCKETS]:
                del self._buckets[old]
        return bucket
