"""What becomes of promises: the part of a plan that is no tokens, applied to requests."""

from sloserve.planner import Plan, Verdict
from sloserve.scheduler.counters import Counters, Ending
from sloserve.scheduler.holdings import Holdings
from sloserve.scheduler.placing import Placing
from sloserve.scheduler.queues import Queues
from sloserve.scheduler.request import Request, Status
from sloserve.slo import Decision, OnInfeasible

Told = tuple[Request, Decision, Verdict | None]


class Deciding:
    """
    Moves requests between tiers as plans say, and keeps the decisions to be told.

    What a plan says of a request that it can't be said of is the policy's error: counted, ignored.
    """

    def __init__(
        self, requests: dict[int, Request], queues: Queues, holdings: Holdings, counters: Counters
    ) -> None:
        self._requests = requests
        self._queues = queues
        self._holdings = holdings
        self._counters = counters
        self._told: list[Told] = []

    def drained(self) -> list[Told]:
        """The decisions since the last call, in order."""
        drained, self._told = self._told, []
        return drained

    def apply(self, plan: Plan, now_s: float, *, number: int, placing: Placing) -> None:
        """Plan `number`: preempted first, then who changes tier, then who gets an answer."""
        queues, counters = self._queues, self._counters
        for request_id in plan.preempted:
            request = self._expect(request_id, request_id not in self._holdings.unstarted)
            if request is not None:
                placing.preempt(request)
        for request_id in plan.relegated:
            request = self._expect(request_id, request_id in queues.promised)
            if request is not None:
                queues.remove(request)
                queues.serve_best_effort(request)
                request.promoted = False
                counters.num_relegated += 1
        for request_id in plan.promoted:
            request = self._expect(request_id, self._is_best_effort(request_id))
            if request is not None and request.kept_so_far(now_s):
                queues.remove(request)
                queues.promise(request)
                request.promoted = True
                counters.num_promoted += 1
                if request.decision is Decision.DEGRADED and request.num_output == 0:
                    self.decide(request, Decision.DEFERRED)
        for request_id in plan.admitted:
            request = self._expect(request_id, self.is_undecided(request_id))
            if request is not None:
                queues.remove(request)
                queues.promise(request)
                begun_at_plan = request.begun_at_plan or number
                at_once = begun_at_plan == request.added_at_plan + 1
                self.decide(request, Decision.ADMITTED if at_once else Decision.DEFERRED)
        for request_id, verdict in plan.infeasible.items():
            request = self._expect(request_id, self.is_undecided(request_id))
            if request is not None:
                self.refuse(request, verdict, now_s)

    def is_undecided(self, request_id: int) -> bool:
        """Whether the request waits for its answer."""
        request = self._requests.get(request_id)
        return request is not None and request.decision is None

    def decide(self, request: Request, decision: Decision, verdict: Verdict | None = None) -> None:
        """Note an answer to be told."""
        request.decision = decision
        self._counters.decisions[request.promise.slo_class, decision.value] += 1
        self._told.append((request, decision, verdict))

    def decline(self, request: Request, verdict: Verdict, now_s: float) -> None:
        """The end of a request that is in no queue (any more)."""
        request.move(Status.DECLINED)
        self.decide(request, Decision.DECLINED, verdict)
        self._counters.end(request, Ending.REFUSED, reason=verdict.reason, now_s=now_s)

    def refuse(self, request: Request, verdict: Verdict, now_s: float) -> None:
        """
        No promise for one that is undecided: best effort if it takes that and nobody else could
        be asked. Not for one that is in the step that runs.
        """
        self._queues.remove(request)
        if request.promise.on_infeasible is OnInfeasible.DEGRADE and request.last_hop:
            self.decide(request, Decision.DEGRADED, verdict)
            self._queues.serve_best_effort(request)
        else:
            del self._requests[request.id]
            self._holdings.release(request)
            self.decline(request, verdict, now_s)

    def _expect(self, request_id: int, ok: bool) -> Request | None:
        """The request a plan names, if that makes sense; else the policy is wrong: counted."""
        request = self._requests.get(request_id)
        if request is None or not ok:
            self._counters.num_policy_errors += 1
            return None
        return request

    def _is_best_effort(self, request_id: int) -> bool:
        return request_id not in self._queues.promised and not self.is_undecided(request_id)
