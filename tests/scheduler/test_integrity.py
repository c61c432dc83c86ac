"""Whatever comes in whatever order: blocks are conserved and the books agree."""

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.perf.correction import OnlineCorrection
from sloserve.planner import Limits, Plan, Probe, Snapshot, Verdict
from sloserve.planner.lengths import LengthLaw
from sloserve.scheduler import Batch, Outcome, Proposal, Request, Scheduler, Speculating
from sloserve.slo import OnInfeasible, Promise, Stage
from sloserve.wire import Frontier

LIMITS = Limits(block_size=4, num_blocks=12, max_running=4, max_batch_tokens=32)
MODEL = StepModel(w=0.01, a0=0.0, c1=0.0, a1=0.001, b=0.0, d=0.0)


class Whim:
    """A policy that plans whatever it is told next, sensible or not."""

    name = "whim"

    def __init__(self) -> None:
        self.next = Plan()

    def plan(self, snapshot: Snapshot) -> Plan:
        planned, self.next = self.next, Plan()
        return planned

    def frontier(self, snapshot: Snapshot, probe: Probe) -> Frontier:
        return Frontier(1, probe.max_prompt)

    def fork(self) -> "Whim":
        """Itself: it remembers nothing but what it was told."""
        return self


class Guesses:
    """A drafter that proposes the tokens that are told next."""

    serial = False

    def propose(self, request_id: int, tokens: Sequence[int], *, most: int) -> Proposal:
        return Proposal(most, [0] * most, 1 + len(tokens) % 2)

    def forget(self, request_id: int) -> None:
        pass


class Books(RuleBasedStateMachine):
    """
    A scheduler under random arrivals, plans (foreseen or not), drafts, outcomes, cancels, failures.
    """

    @initialize(caching=st.booleans(), drafts=st.sampled_from([None, 0, 1, 5, -1]))
    def start(self, caching: bool, drafts: int | None) -> None:
        self.policy = Whim()
        speculating = None
        if drafts is not None:  # -1: as the planner decides
            fixed = None if drafts < 0 else drafts
            speculating = Speculating(Guesses(), max_draft_tokens=6, fixed=fixed)
        self.scheduler = Scheduler(
            self.policy,
            MODEL,
            OnlineCorrection(),
            LIMITS,
            new_law=LengthLaw,
            max_waiting=6,
            prefix_caching=caching,
            speculating=speculating,
        )
        self.now_s = 0.0
        self.ids = 0
        self.added: list[Request] = []
        self.batch: Batch | None = None

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=30),
        output=st.integers(1, 12),
        ttft_s=st.sampled_from([0.0, 0.05, 10.0]),
        on_infeasible=st.sampled_from(OnInfeasible),
        last_hop=st.booleans(),
        age_s=st.sampled_from([0.0, 0.3]),
    )
    def add(
        self,
        prompt: list[int],
        output: int,
        ttft_s: float,
        on_infeasible: OnInfeasible,
        last_hop: bool,
        age_s: float,
    ) -> None:
        self.ids += 1
        promise = Promise("chat", ttft_s, (Stage("decode", 0.02),), on_infeasible)
        request = Request(
            id=self.ids,
            promise=promise,
            arrival_s=self.now_s - age_s,
            tokens=list(prompt),
            num_prompt=len(prompt),
            max_output=output,
            last_hop=last_hop,
        )
        self.added.append(request)
        self.scheduler.add(request, self.now_s)

    def make_up_a_plan(self, data: Any) -> None:
        ids = sorted(self.scheduler.requests) or [1]
        some = st.lists(st.sampled_from([*ids, 999]), max_size=4, unique=True)
        admitted = data.draw(some)
        self.policy.next = Plan(
            tokens=data.draw(
                st.dictionaries(st.sampled_from([*ids, 999]), st.integers(0, 12), max_size=6)
            ),
            admitted=tuple(admitted),
            infeasible={
                i: Verdict(Reason.TPOT, "", 0.0, 0.0) for i in data.draw(some) if i not in admitted
            },
            relegated=tuple(data.draw(some)),
            promoted=tuple(data.draw(some)),
            preempted=tuple(data.draw(some)),
        )

    @precondition(lambda self: self.batch is not None)
    @rule(data=st.data())
    def foresee(self, data: Any) -> None:
        self.make_up_a_plan(data)
        self.scheduler.foresee(self.now_s, self.now_s)

    @precondition(lambda self: self.batch is None)
    @rule(data=st.data())
    def schedule(self, data: Any) -> None:
        self.make_up_a_plan(data)
        self.batch = self.scheduler.schedule(self.now_s)
        if self.batch is not None:
            assert len({row.request.id for row in self.batch.rows}) == len(self.batch.rows)
            for row in self.batch.rows:
                held = len(row.request.blocks) * LIMITS.block_size
                assert row.start + row.count <= min(held, len(row.request.tokens))
                assert row.sample == (row.start + row.count == len(row.request.tokens))
                assert row.num_drafts == 0 or row.decodes
                assert row.start + row.count + row.num_drafts <= held
                num_left = row.request.max_output - row.request.num_output
                assert row.num_drafts < max(1, num_left)
            assert self.batch.num_tokens <= max(
                LIMITS.max_batch_tokens, sum(row.count for row in self.batch.rows)
            )

    @precondition(lambda self: self.batch is not None)
    @rule(early=st.booleans(), took_s=st.sampled_from([0.001, 0.05]), right=st.integers(0, 5))
    def commit(self, early: bool, took_s: float, right: int) -> None:
        assert self.batch is not None
        outcomes = {}
        for row in self.batch.rows:
            if row.sample:
                num_accepted = min(right, row.num_drafts)
                num_emitted = max(0, num_accepted - early) + 1  # an end may cut off the last
                outcomes[row.request.id] = Outcome(
                    token_id=row.request.id % 2,
                    finished=early
                    or row.request.num_output + num_emitted == row.request.max_output,
                    earlier=(Outcome(token_id=0),) * (num_emitted - 1),
                    num_drafted=row.num_drafts,
                    num_accepted=num_accepted,
                )
        self.now_s += took_s
        self.scheduler.commit(self.batch, outcomes, self.now_s - took_s, self.now_s)
        self.batch = None

    @precondition(lambda self: self.batch is not None)
    @rule()
    def fail(self) -> None:
        assert self.batch is not None
        self.scheduler.fail(self.batch, self.now_s)
        self.batch = None

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if self.scheduler.requests:
            victim = data.draw(st.sampled_from(sorted(self.scheduler.requests)))
            assert self.scheduler.cancel(victim, self.now_s)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        counters = self.scheduler.counters
        assert sum(counters.ended.values()) + len(self.scheduler.requests) == len(self.added)
        assert counters.attained["chat", "all"] <= counters.eligible["chat"] <= len(self.added)
        for request in self.added:
            if request.id not in self.scheduler.requests and not request.in_flight:
                assert not request.blocks

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        if self.batch is not None:
            self.scheduler.fail(self.batch, self.now_s)
        for request_id in list(self.scheduler.requests):
            self.scheduler.cancel(request_id, self.now_s)
        self.scheduler.check_integrity()
        assert self.scheduler.blocks.num_free == LIMITS.num_blocks


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase
