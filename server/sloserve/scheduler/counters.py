"""What became of the requests of each class, counted once, at their end."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from sloserve.errors import Reason
from sloserve.scheduler.request import Request
from sloserve.slo import Decision


class Ending(StrEnum):
    """The metric label `outcome`."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


@dataclass(slots=True)
class Counters:
    """
    Totals since the start. Every class of `start` is there at 0, so rates are right at once.

    `ended` is keyed (class, decision, ending, reason). `eligible` and `attained` are the strict
    score by class, counted by emission; `attained` is keyed (class, promise) with promise
    "ttft", "tpot" or "all".
    """

    eligible: Counter[str] = field(default_factory=Counter)
    attained: Counter[tuple[str, str]] = field(default_factory=Counter)
    ended: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_preemptions: int = 0
    num_policy_errors: int = 0
    num_relegated: int = 0
    num_promoted: int = 0
    num_late_tokens: int = 0
    num_steps: int = 0
    num_foreseen: int = 0  # plans made while the step before ran, and taken
    prefill_tokens: int = 0
    decode_tokens: int = 0
    best_effort_tokens: int = 0  # of prefill and decode alike
    output_tokens: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0

    def start(self, slo_class: str) -> None:
        """Make a class appear at 0."""
        self.eligible[slo_class] += 0
        for promise in ("ttft", "tpot", "all"):
            self.attained[slo_class, promise] += 0
        for decision in Decision:
            self.decisions[slo_class, decision.value] += 0

    def end(self, request: Request, ending: Ending, *, reason: Reason, now_s: float) -> None:
        """
        Count a request at its end.

        Not eligible: cancelled by the client while every due time so far was kept, and declined
        on a hop that was not the last (another replica is asked, and counts it).
        Degraded, declined and failed requests are missed; one that got its promise back before
        its first token is a deferred one by now.
        """
        slo_class = request.promise.slo_class
        decision = request.decision.value if request.decision else "none"
        self.ended[slo_class, decision, ending.value, reason.value] += 1
        if ending is Ending.CANCELLED and request.kept_so_far(now_s):
            return
        if request.decision is Decision.DECLINED and not request.last_hop:
            return
        self.eligible[slo_class] += 1
        promised = request.decision in (Decision.ADMITTED, Decision.DEFERRED)
        if ending is not Ending.FINISHED or not promised:
            return
        if request.streamed:
            ttft_kept, tpot_kept = request.ttft_kept, request.num_late_after_first == 0
        else:
            ttft_kept = tpot_kept = now_s <= request.answer_due_s
        self.attained[slo_class, "ttft"] += ttft_kept
        self.attained[slo_class, "tpot"] += tpot_kept
        self.attained[slo_class, "all"] += ttft_kept and tpot_kept
