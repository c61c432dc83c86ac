"""A whole service on the virtual clock: the real routing in front of simulated replicas."""

from collections.abc import Callable, Mapping

from sloserve.load.records import Record
from sloserve.load.trace import Arrival, Trace
from sloserve.perf import OnlineCorrection
from sloserve.planner import Limits, Policy
from sloserve.planner.lengths import LengthLaw
from sloserve.routing import Ask, Replica, RoutingState, make_router
from sloserve.scheduler import Scheduler, Speculating
from sloserve.scheduler.report import (
    earliest_first_token_s,
    token_supply_per_s,
    zero_load_line,
)
from sloserve.simulate.clock import EventLoop
from sloserve.simulate.drafter import SimDrafter
from sloserve.simulate.job import Job
from sloserve.simulate.replica import SimReplica
from sloserve.simulate.settings import Lengths, SimSettings
from sloserve.simulate.truth import Truth
from sloserve.slo import Decision, Offer, SloClass
from sloserve.wire import Report

SERVICE = "simulated"
MAX_HOPS = 4
"""Replicas asked at most when the service does not say."""


class Cluster:
    """Runs one load; use it once. Every replica gets a policy of its own from `new_policy`."""

    def __init__(
        self,
        classes: Mapping[str, SloClass],
        settings: SimSettings,
        *,
        new_policy: Callable[[], Policy],
    ) -> None:
        self.settings = settings
        self._new_policy = new_policy
        self.clock = EventLoop()
        self._classes = classes
        self._state = RoutingState()
        self._router = make_router(settings.router)
        self._replicas = {
            name: self._make_replica(name) for name in (f"r{i}" for i in range(settings.replicas))
        }
        self._seen = {name: self._seen_now(name) for name in self._replicas}
        self._reported_s = 0.0
        self._inflight = dict.fromkeys(self._replicas, 0)
        self._unreported = dict.fromkeys(self._replicas, 0)
        self._pending: list[Job] = []
        self._left = 0
        self._last_arrival_s = 0.0

    @property
    def replicas(self) -> list[SimReplica]:
        """The replicas, with what they measured."""
        return list(self._replicas.values())

    def run(self, trace: Trace) -> list[Record]:
        """Every request of the trace to its end; records in order of arrival."""
        jobs = [self._job(number, arrival) for number, arrival in enumerate(trace.arrivals)]
        self._left = len(jobs)
        self._last_arrival_s = jobs[-1].arrival.t_s if jobs else 0.0
        self._arrive(jobs, 0)
        if len(self._replicas) > 1:
            self.clock.at(self.settings.poll_s, self._poll)
        self.clock.run(
            until_s=trace.duration_s + self.settings.drain_s, is_done=lambda: self._left == 0
        )
        now_s = self.clock.now_s
        return [job.record(way_out_s=self.settings.way_out_s, now_s=now_s) for job in jobs]

    # --- requests -----------------------------------------------------------------------------

    def _job(self, number: int, arrival: Arrival) -> Job:
        slo_class = self._classes[arrival.slo_class]
        offer = Offer(
            slo_class=slo_class.name,
            ttft=slo_class.ttft,
            stages=slo_class.stages,
            on_infeasible=slo_class.on_infeasible,
            weight=slo_class.weight,
            bank=slo_class.bank,
        )
        promise = offer.promise(lambda: self.settings.model.prefill_s(arrival.prompt_tokens))
        thinking = 0
        if len(slo_class.stages) > 1:
            thinking = max(1, round(self.settings.thinking_share * arrival.output_tokens))
        return Job(number, arrival, promise, thinking)

    def _arrive(self, jobs: list[Job], number: int) -> None:
        """Set the coming arrival only: the heap stays small."""
        if number < len(jobs):
            job = jobs[number]

            def arrived() -> None:
                self._arrive(jobs, number + 1)
                self._route(job)

            self.clock.at(job.arrival.t_s + self.settings.way_in_s, arrived)

    def _route(self, job: Job) -> None:
        ask = self._ask(job)
        choice = self._router(ask, self._views(), self._state)
        if choice.replica is not None:
            self._send(job, choice.replica, last_hop=choice.last_hop)
        elif choice.pend_s > 0:
            self._pending.append(job)
        else:
            self._refused(job, choice.reason.value)

    def _send(self, job: Job, name: str, *, last_hop: bool) -> None:
        settings = self.settings
        job.hops += 1
        job.replica = name
        self._inflight[name] += 1
        self._unreported[name] += job.arrival.prompt_tokens
        room = settings.max_model_len - job.arrival.prompt_tokens
        hidden = settings.lengths is Lengths.HIDDEN
        request = job.request(
            max_output=max(room, job.arrival.output_tokens)
            if hidden
            else job.arrival.output_tokens,
            oracle=settings.lengths is Lengths.ORACLE,
            last_hop=last_hop,
        )
        self._replicas[name].submit(job, request)

    def _decided(self, job: Job, decision: Decision, reason: str) -> None:
        declined = decision is Decision.DECLINED
        if job.decision is None:  # else a degraded job got its promise back: it is not asked anew
            self._state.asked(declined=declined or decision is Decision.DEGRADED)
        if not declined:
            job.decision, job.reason = decision, reason
            return
        self._inflight[job.replica] -= 1
        if job.hops >= self._max_hops():
            self._refused(job, reason)
            return
        job.exclude.add(job.replica)
        job.reason = reason
        if len(self._replicas) == 1:
            self._refused(job, reason)
        else:
            self._route(job)

    def _refused(self, job: Job, reason: str) -> None:
        job.decision, job.reason = Decision.DECLINED, reason
        job.ended_s = self.clock.now_s
        self._left -= 1

    def _ended(self, job: Job) -> None:
        self._inflight[job.replica] -= 1
        self._state.finished(job.promise.slo_class, len(job.times_s))
        job.ended_s = self.clock.now_s
        self._left -= 1

    # --- what the router sees -----------------------------------------------------------------

    def _max_hops(self) -> int:
        return self.settings.max_hops or min(MAX_HOPS, len(self._replicas))

    def _ask(self, job: Job) -> Ask:
        promise = job.promise
        return Ask(
            slo_class=promise.slo_class,
            num_prompt_tokens=job.arrival.prompt_tokens,
            ttft=self._classes[promise.slo_class].ttft,
            tpot_s=min(stage.tpot_s for stage in promise.stages),
            age_s=self.clock.now_s - job.arrival.t_s,
            max_prompt_tokens=self.settings.max_model_len,
            exclude=frozenset(job.exclude),
            hops=job.hops,
            max_hops=self._max_hops(),
        )

    def _views(self) -> list[Replica]:
        return [
            Replica(
                name=name,
                report=self._seen[name],
                age_s=self.clock.now_s - self._reported_s if len(self._seen) > 1 else 0.0,
                num_inflight=self._inflight[name],
                unreported_tokens=float(self._unreported[name]),
            )
            for name in self._replicas
        ]

    def _poll(self) -> None:
        """New reports; who waited is routed again, the declined may be asked anew."""
        self._reported_s = self.clock.now_s
        for name in self._replicas:
            self._seen[name] = self._seen_now(name)
            self._unreported[name] = 0
        pending, self._pending = self._pending, []
        for job in pending:
            job.exclude.clear()
            self._route(job)
        self.clock.at(self.clock.now_s + self.settings.poll_s, self._poll)

    def _seen_now(self, name: str) -> Report:
        """A replica's report; a lone one is sent everything, whatever it reports."""
        if self.settings.replicas == 1:
            return Report(service=SERVICE, replica=name, state="ready")
        return report_of(self._replicas[name].scheduler, name=name, now_s=self.clock.now_s)

    # --- construction -------------------------------------------------------------------------

    def _make_replica(self, name: str) -> SimReplica:
        s = self.settings
        drafter = None
        if s.acceptance is not None:
            drafter = SimDrafter(
                s.acceptance, serial=s.draft_model, propose_s=s.propose_s, seed=s.seed
            )
        scheduler = Scheduler(
            self._new_policy(),
            s.model,
            OnlineCorrection(start_margin_s=0.0 if s.strict else s.start_margin_s),
            Limits(
                block_size=s.block_size,
                num_blocks=s.num_blocks,
                max_running=s.max_running,
                max_batch_tokens=s.max_batch_tokens,
            ),
            new_law=LengthLaw,
            classes=self._classes.values(),
            max_model_len=s.max_model_len,
            prefix_caching=False,
            max_waiting=1_000_000,
            way_out_s=s.way_out_s if s.planned_way_out_s is None else s.planned_way_out_s,
            assert_promises=s.strict,
            speculating=None
            if drafter is None
            else Speculating(drafter, max_draft_tokens=s.max_drafts, fixed=s.fixed_drafts),
        )
        return SimReplica(
            name,
            self.clock,
            scheduler,
            Truth(s.model, s.truth, seed=f"{s.seed}/{name}"),
            plan_s=s.plan_s,
            overlap=s.overlap,
            drafter=drafter,
            on_decision=self._decided,
            on_end=self._ended,
        )


def report_of(scheduler: Scheduler, *, name: str, now_s: float) -> Report:
    """What a replica with this scheduler tells routers."""
    snapshot = scheduler.snapshot(now_s)
    fixed_s, per_token_s = zero_load_line(scheduler.model)
    classes = scheduler.classes
    return Report(
        service=SERVICE,
        replica=name,
        state="ready",
        frontier=scheduler.frontier(now_s, classes.values()),
        earliest_first_token_s={
            slo_class: earliest_first_token_s(snapshot, num_prompt=1) for slo_class in classes
        },
        tightest_tpot_s=min((row.tightest_tpot_s for row in snapshot.running), default=0.0),
        token_supply_per_s=token_supply_per_s(snapshot),
        free_blocks=snapshot.free_blocks,
        total_blocks=scheduler.limits.num_blocks,
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting,
        waiting_prefill_tokens=sum(
            row.num_left for row in (*snapshot.running, *snapshot.waiting) if not row.decodes
        ),
        zero_load_fixed_s=fixed_s,
        zero_load_per_token_s=per_token_s,
    )
