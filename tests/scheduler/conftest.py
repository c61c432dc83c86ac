"""A small world: a true first-come-first-served policy, a scheduler, and a loop on virtual time."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from sloserve.errors import Reason
from sloserve.perf import StepModel
from sloserve.planner import Limits, Plan, Probe, Row, Snapshot, Verdict
from sloserve.scheduler import Batch, Outcome, Request, Scheduler
from sloserve.slo import Decision, OnInfeasible, Promise, SloClass, Stage, Ttft
from sloserve.wire import Frontier

MODEL = StepModel(w=0.010, a0=0.0, c1=0.002, a1=0.0001, b=0.0, d=0.0)
LIMITS = Limits(block_size=4, num_blocks=64, max_running=8, max_batch_tokens=64)


@dataclass(slots=True)
class FirstCome:
    """
    Decodes first, then prefill chunks by arrival. Admits in order while rows and blocks last,
    preempts the latest when blocks run out, finds infeasible what is already late.
    """

    name: str = "first-come"
    num_frontiers: int = 0
    instead: Callable[[Snapshot], Plan] | None = None
    hopeless: Callable[[Row, Snapshot], bool] = lambda row, snapshot: row.due_s < snapshot.now_s

    def plan(self, snapshot: Snapshot) -> Plan:
        if self.instead is not None:
            return self.instead(snapshot)
        limits, free = snapshot.limits, snapshot.free_blocks
        tokens: dict[int, int] = {}
        admitted, infeasible, preempted = [], {}, list[int]()
        budget = limits.max_batch_tokens
        known = [*snapshot.running, *snapshot.best_effort]
        known.sort(key=lambda row: (not row.decodes, row.arrival_s))
        held = sum(row.num_blocks > 0 for row in known)
        waiting = [row for row in snapshot.waiting if not self.hopeless(row, snapshot)]
        for row in snapshot.waiting:
            if self.hopeless(row, snapshot):
                infeasible[row.id] = Verdict(Reason.TTFT, "too late", 0.5, 0.5)
        victims = [row for row in reversed(known) if row.num_blocks > 0]
        for row in [*known, *waiting]:
            count = min(row.num_left, budget)
            if count == 0 or row.id in preempted:
                continue
            if row.num_blocks == 0 and held >= limits.max_running:
                break
            need = -(-(row.num_computed + count) // limits.block_size) - row.num_blocks
            while need > free and victims and row in known:
                victim = victims.pop(0)
                if victim.id == row.id or victim.id in tokens:
                    break
                preempted.append(victim.id)
                free += victim.num_blocks
            if need > free:
                break
            free -= need
            budget -= count
            held += row.num_blocks == 0
            tokens[row.id] = count
            if row not in known:
                admitted.append(row.id)
        return Plan(
            tokens=tokens,
            admitted=tuple(admitted),
            infeasible=infeasible,
            preempted=tuple(preempted),
        )

    def frontier(self, snapshot: Snapshot, probe: Probe) -> Frontier:
        self.num_frontiers += 1
        return Frontier(1, probe.max_prompt)

    def fork(self) -> "FirstCome":
        """Itself: it remembers nothing."""
        return self


@dataclass(slots=True)
class MeanLaw:
    """The mean of what was seen; 16 before that."""

    seen: list[int] = field(default_factory=list)

    def observe(self, length: int) -> None:
        self.seen.append(length)

    def conditional(self, n_so_far: int, max_left: int) -> tuple[float, float]:
        mean = sum(self.seen) / len(self.seen) if self.seen else 16.0
        return min(max(1.0, mean - n_so_far), float(max_left)), 0.0


@dataclass(slots=True)
class Uncorrected:
    """The profile is exact."""

    ratio: float = 1.0
    margin_s: float = 0.0
    seen: list[tuple[float, float]] = field(default_factory=list)

    @property
    def excess_share(self) -> float:
        """None."""
        return 0.0

    def observe(self, predicted_s: float, actual_s: float) -> None:
        self.seen.append((predicted_s, actual_s))


class World:
    """A scheduler with virtual time: every step takes what the model says."""

    def __init__(self, scheduler: Scheduler, policy: FirstCome, correction: Uncorrected) -> None:
        self.scheduler = scheduler
        self.policy = policy
        self.correction = correction
        self.now_s = 0.0
        self.decisions: list[tuple[int, Decision, Verdict | None]] = []
        self._ids = itertools.count(1)

    def request(
        self,
        prompt: int | Iterable[int] = 8,
        *,
        output: int = 4,
        ttft_s: float = 10.0,
        tpot_s: float = 1.0,
        stages: tuple[Stage, ...] = (),
        on_infeasible: OnInfeasible = OnInfeasible.DEGRADE,
        last_hop: bool = True,
        slo_class: str = "chat",
        arrival_s: float | None = None,
        salt: str = "",
        streamed: bool = True,
    ) -> Request:
        number = next(self._ids)
        if isinstance(prompt, int):
            tokens = [1000 * number + i for i in range(prompt)]
        else:
            tokens = list(prompt)
        return Request(
            id=number,
            promise=Promise(
                slo_class=slo_class,
                ttft_s=ttft_s,
                stages=stages or (Stage("decode", tpot_s),),
                on_infeasible=on_infeasible,
            ),
            arrival_s=self.now_s if arrival_s is None else arrival_s,
            tokens=tokens,
            num_prompt=len(tokens),
            max_output=output,
            last_hop=last_hop,
            cache_salt=salt,
            streamed=streamed,
        )

    def add(self, request: Request) -> Request:
        self.scheduler.add(request, self.now_s)
        return request

    def plan(self) -> Batch | None:
        batch = self.scheduler.schedule(self.now_s)
        self.decisions += [(r.id, d, v) for r, d, v in self.scheduler.decisions()]
        return batch

    def finish(self, batch: Batch, *, factor: float = 1.0) -> None:
        start_s = self.now_s
        self.now_s += batch.stored_s * factor
        outcomes = {
            row.request.id: Outcome(
                token_id=7 + row.request.num_output,
                finished=row.request.num_output + 1
                == (row.request.known_output or row.request.max_output),
                stage=row.request.stage,
            )
            for row in batch.rows
            if row.sample
        }
        self.scheduler.commit(batch, outcomes, start_s, self.now_s)

    def step(self, meanwhile: Callable[[float], object] | None = None) -> Batch | None:
        """One step; with `meanwhile` (called with its end) the next one is planned beside it."""
        batch = self.plan()
        if batch is not None:
            if meanwhile is not None:
                self.foresee()
                meanwhile(self.now_s + batch.stored_s)
                self.foresee()
            self.finish(batch)
        self.scheduler.check_integrity()
        return batch

    def foresee(self) -> None:
        self.scheduler.foresee(self.now_s, self.now_s)
        self.decisions += [(r.id, d, v) for r, d, v in self.scheduler.decisions()]
        self.scheduler.check_integrity()

    def run(self, max_steps: int = 1000) -> int:
        for steps in range(max_steps):
            if self.step() is None:
                return steps
        raise AssertionError(f"not done after {max_steps} steps")


@pytest.fixture
def a_world() -> Callable[..., World]:
    def build(
        *,
        limits: Limits = LIMITS,
        model: StepModel = MODEL,
        policy: FirstCome | None = None,
        classes: Iterable[SloClass] = (),
        max_waiting: int = 100,
        prefix_caching: bool = True,
        assert_promises: bool = False,
    ) -> World:
        policy = policy or FirstCome()
        correction = Uncorrected()
        scheduler = Scheduler(
            policy,
            model,
            correction,
            limits,
            new_law=MeanLaw,
            classes=classes,
            max_waiting=max_waiting,
            prefix_caching=prefix_caching,
            assert_promises=assert_promises,
        )
        return World(scheduler, policy, correction)

    return build


@pytest.fixture
def world(a_world: Callable[..., World]) -> Iterator[World]:
    world: World = a_world()
    yield world
    world.scheduler.check_integrity()


@pytest.fixture
def a_class() -> Callable[..., SloClass]:
    def build(name: str = "chat", **changes: object) -> SloClass:
        fields: dict[str, object] = {
            "name": name,
            "ttft": Ttft(target_s=1.0),
            "stages": (Stage("decode", 0.1),),
        }
        return SloClass(**{**fields, **changes})  # type: ignore[arg-type]

    return build
