"""What is known of one request, and how far it got."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sloserve.errors import Reason
from sloserve.gateway.peek import Peek
from sloserve.gateway.promise import StreamJudge
from sloserve.gateway.reply import Headers, explanation
from sloserve.http.offers import ResolvedOffer
from sloserve.http.tracing import NO_SPAN, Span
from sloserve.slo import Decision, Offer, Promise
from sloserve.wire import SESSION_ID


@dataclass(slots=True, eq=False)
class Ticket:
    """One request. Times are on the gateway's monotonic clock."""

    request_id: str
    chat: bool
    body: bytes
    seen: Peek
    resolved: ResolvedOffer
    forwarded: Mapping[str, str]
    """Headers that go to the replica."""
    arrival_s: float
    num_prompt: int
    """Prompt tokens: an estimate until a replica tells."""
    prefixes: tuple[tuple[int, int], ...] = ()
    span: Span = NO_SPAN

    num_hops: int = 0
    num_deaths: int = 0
    refused_s: dict[str, float] = field(default_factory=dict)
    """Replica's address -> when it declined this request, or died under it."""
    num_waits: int = 0
    waited_s: float = 0.0
    decision: Decision | None = None
    reason: Reason = Reason.NONE
    replica: str = ""
    promise: Promise | None = None
    judge: StreamJudge | None = None
    num_output: int = 0
    """Output tokens of an answer that is not streamed."""
    status: int = 0
    """HTTP status of the answer; 0: none was sent."""
    sent: bool = False
    """Something went to the client."""
    counted: bool = False
    """It is over, and in the counters."""
    last_events: bytes = b""
    sending_since_s: float | None = None
    """Since when the client has not taken what was sent."""

    @property
    def offer(self) -> Offer:
        """What it asks for."""
        return self.resolved.offer

    @property
    def session(self) -> str:
        """The session it belongs to, if it says so."""
        return self.forwarded.get(SESSION_ID, "")

    @property
    def num_output_sent(self) -> int:
        """Output tokens that went to the client."""
        return self.judge.num_tokens if self.judge is not None else self.num_output

    def promised(self, *, told_ttft_s: float | None, zero_load_s: float) -> Promise:
        """
        The promise as the replica resolved it. A TTFT in the offer itself is exact; a slowdown
        is what the replica told, else reckoned from the zero-load time it reports.
        """
        promise = self.offer.promise(lambda: zero_load_s)
        if self.offer.ttft.target_s is None and told_ttft_s is not None:
            promise = replace(promise, ttft_s=told_ttft_s)
        self.promise = promise
        return promise

    def decided(self, decision: Decision, reason: Reason) -> None:
        """What the replica made of it; admitted after a wait here is deferred."""
        waited = self.waited_s > 0.0 and decision is Decision.ADMITTED
        self.decision = Decision.DEFERRED if waited else decision
        self.reason = reason

    def explanation(self) -> Headers:
        """The headers that tell all this to the client."""
        return explanation(
            request_id=self.request_id,
            slo_class=self.offer.slo_class,
            decision=self.decision or "",
            ttft_s=self.promise.ttft_s if self.promise is not None else self.offer.ttft.target_s,
            replica=self.replica,
            reason=self.reason,
            num_hops=self.num_hops,
            notes=self.resolved.notes,
        )
