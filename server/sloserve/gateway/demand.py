"""What a class asked of this gateway in the last minute: the input of autoscaling."""

from collections.abc import Callable

from sloserve.errors import Reason
from sloserve.slo import Decision
from sloserve.wire import Demand

BUCKET_S = 5.0
NUM_BUCKETS = 12
CAPACITY = (
    Reason.TTFT, Reason.TPOT, Reason.KV, Reason.REPLICAS, Reason.LOADING, Reason.QUEUE_FULL,
)  # fmt: skip
"""What more replicas would help against."""


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
