"""
An independent one-replica replay: it owns rows, blocks and the clock, applies whatever a policy
plans, and checks the books at every step. It shares no code with the planner's play-forward.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from sloserve.perf import StepModel
from sloserve.planner import Limits, Plan, Policy, Row, Snapshot, Tier
from sloserve.planner.lengths import LengthLaw

TINY_CPU = StepModel(w=0.004, a0=0.00003, c1=0.003, a1=0.00008, b=6e-8, d=3e-8)
GPU = StepModel(w=0.0108, a0=3.7e-5, c1=0.0071, a1=6.7e-5, b=7.7e-8, d=5.9e-9)


@dataclass(frozen=True)
class Load:
    """One request of a load."""

    arrival_s: float
    prompt: int
    output: int
    ttft_s: float
    tpot_s: float
    slo_class: str = "only"
    weight: float = 1.0
    may_wait: bool = True


@dataclass
class Life:
    """What became of it."""

    load: Load
    row: Row
    law: LengthLaw | None
    kept: bool = True
    promised: bool = False  # its promise was confirmed, and not given up
    ever_promised: bool = False
    refused: bool = False
    gave_up: bool = False  # relegated
    done: bool = False
    late_while_promised: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    decided_s: float | None = None


@dataclass
class Replay:
    """
    Runs a load through a policy. `noise_sd` and `stragglers` make steps differ from the model;
    `known` gives the policy exact output lengths; `degrade` serves the refused best-effort.
    """

    policy: Policy
    model: StepModel = TINY_CPU
    limits: Limits = field(default_factory=lambda: Limits(block_size=16, num_blocks=8192))
    margin_s: float = 0.0
    noise_sd: float = 0.0
    stragglers: float = 0.0
    known: bool = True
    degrade: bool = False
    seed: int = 0
    strict: bool = False  # raise at the first late token of a promised request
    truth: StepModel | None = None
    tentative: bool = True
    now_s: float = 0.0
    steps: int = 0
    lives: dict[int, Life] = field(default_factory=dict)
    running: list[Row] = field(default_factory=list)
    waiting: list[Row] = field(default_factory=list)
    best_effort: list[Row] = field(default_factory=list)
    watch: Callable[["Replay", Plan], None] | None = None
    num_preempted: int = 0

    def run(self, loads: Iterable[Load], *, until_s: float = math.inf) -> "Replay":
        """Serve all of them to their ends."""
        rng = random.Random(self.seed)
        todo = sorted(enumerate(loads), key=lambda pair: pair[1].arrival_s)
        laws: dict[str, LengthLaw] = {}
        at = 0
        truth = self.truth or self.model
        idle = 0
        while at < len(todo) or self.running or self.waiting or self.best_effort:
            if self.now_s > until_s:
                break
            while at < len(todo) and todo[at][1].arrival_s <= self.now_s:
                self.arrive(*todo[at], laws)
                at += 1
            if not (self.running or self.waiting or self.best_effort):
                self.now_s = todo[at][1].arrival_s
                continue
            plan = self.policy.plan(self.snapshot())
            if self.watch:
                self.watch(self, plan)
            self.apply(plan)
            if not plan.tokens:
                idle += 1
                if at < len(todo):
                    self.now_s = min(self.now_s + 0.002, max(self.now_s, todo[at][1].arrival_s))
                    self.now_s += 1e-9
                else:
                    self.now_s += 0.002
                assert idle < 100_000, "the policy stands still"
                continue
            idle = 0
            self.step(plan, truth, rng)
        return self

    def arrive(self, key: int, load: Load, laws: dict[str, LengthLaw]) -> None:
        """A new request waits."""
        law = None
        mean, sd, most = float(load.output), 0.0, load.output
        if not self.known:
            law = laws.setdefault(load.slo_class, LengthLaw())
            most = 4096
            mean, sd = law.conditional(0, most)
        row = Row(
            id=key,
            tier=Tier.PROMISED,
            arrival_s=load.arrival_s,
            num_known=load.prompt,
            num_computed=0,
            num_output=0,
            due_s=load.arrival_s + load.ttft_s,
            tpot_s=load.tpot_s,
            tightest_tpot_s=load.tpot_s,
            anchored=False,
            expected_output=mean,
            expected_sd=sd,
            max_output=most,
            weight=load.weight,
            num_blocks=0,
            running=False,
            may_wait=load.may_wait,
            slo_class=load.slo_class,
        )
        self.lives[key] = Life(load, row, law)
        self.waiting.append(row)

    def place(self, row: Row, load: Load) -> None:
        """A request in mid-life, with its blocks; decodes and prefills run, others wait."""
        life = Life(load, row, None, promised=row.running, ever_promised=row.running)
        self.lives[row.id] = life
        (self.running if row.running else self.waiting).append(row)

    def snapshot(self) -> Snapshot:
        """What the policy sees."""
        rows = (*self.running, *self.best_effort, *self.waiting)
        return Snapshot(
            now_s=self.now_s,
            model=self.model,
            margin_s=self.margin_s,
            limits=self.limits,
            free_blocks=self.limits.num_blocks - sum(row.num_blocks for row in rows),
            running=list(self.running),
            waiting=list(self.waiting),
            best_effort=list(self.best_effort),
            tentative=self.tentative,
        )

    def apply(self, plan: Plan) -> None:
        """Change tiers and queues as the plan says; a senseless plan fails here."""
        for key in plan.preempted:
            row = self.lives[key].row
            assert row.num_blocks > 0, "preempted one that holds nothing"
            row.num_blocks = row.num_computed = 0
            self.num_preempted += 1
        for key in plan.relegated:
            life = self.lives[key]
            self.running.remove(life.row)
            life.promised = False
            life.gave_up = True
            life.row.tier = Tier.BEST_EFFORT
            self.best_effort.append(life.row)
        for key in plan.promoted:
            life = self.lives[key]
            self.best_effort.remove(life.row)
            life.promised, life.refused, life.gave_up = True, False, False
            life.row.tier = Tier.PROMISED
            self.running.append(life.row)
        for key in plan.admitted:
            life = self.lives[key]
            self.waiting.remove(life.row)
            life.promised = life.ever_promised = life.row.running = True
            life.decided_s = self.now_s
            self.running.append(life.row)
        for key in plan.infeasible:
            life = self.lives[key]
            self.waiting.remove(life.row)
            life.refused = True
            life.decided_s = self.now_s
            if self.degrade and life.load.may_wait:
                life.row.tier = Tier.BEST_EFFORT
                self.best_effort.append(life.row)
            else:
                life.done = True
                life.row.num_blocks = 0
        self.best_effort.sort(key=lambda row: row.arrival_s)

    def step(self, plan: Plan, truth: StepModel, rng: random.Random) -> None:
        """Run the planned tokens."""
        size = self.limits.block_size
        m, context, pairs = 0, 0.0, 0.0
        emits: list[Life] = []
        for key, count in plan.tokens.items():
            life = self.lives[key]
            row = life.row
            assert not life.done
            if row in self.waiting:
                assert count < row.num_left, "a token of one that was not admitted"
            assert 0 < count <= row.num_left, "planned past the last known token"
            m += count
            if row.decodes:
                context += row.num_known
            else:
                pairs += count * (row.num_computed + count / 2)
            row.num_computed += count
            row.num_blocks = max(row.num_blocks, -(-row.num_computed // size))
            if row.num_computed == row.num_known:
                emits.append(life)
        held = sum(row.num_blocks for row in (*self.running, *self.best_effort, *self.waiting))
        assert held <= self.limits.num_blocks, f"{held} blocks held"
        assert m <= self.limits.max_batch_tokens
        started = sum(row.num_blocks > 0 for row in (*self.running, *self.best_effort))
        assert started <= self.limits.max_running
        actual_s = truth.step_s(m, context=context, pairs=pairs)
        if self.noise_sd:
            actual_s *= math.exp(rng.gauss(0.0, self.noise_sd))
        if self.stragglers and rng.random() < self.stragglers:
            actual_s *= 1.5
        self.now_s += actual_s
        self.steps += 1
        for life in emits:
            self.emit(life)

    def emit(self, life: Life) -> None:
        """One token came out."""
        row, load = life.row, life.load
        if self.now_s > row.due_s + 1e-7:
            life.kept = row.kept = False
            if life.promised:
                life.late_while_promised += 1
                if self.strict:
                    late = self.now_s - row.due_s
                    raise AssertionError(
                        f"{row.id}: token {row.num_output + 1} is {late:.6f} s late at"
                        f" {self.now_s:.6f} ({load})"
                    )
        if row.num_output == 0:
            life.first_s = self.now_s
        row.due_s = (row.due_s if row.anchored else self.now_s) + row.tpot_s
        row.anchored = True
        row.num_output += 1
        row.num_known += 1
        row.max_output -= 1
        if life.law is not None:
            if row.num_output % 8 == 1:
                mean, row.expected_sd = life.law.conditional(row.num_output, row.max_output)
                row.expected_output = mean
            else:
                row.expected_output = max(1.0, row.expected_output - 1.0)
        else:
            row.expected_output -= 1.0
        if row.num_output == load.output:
            life.done = True
            life.last_s = self.now_s
            if life.law is not None:
                life.law.observe(load.output)
            row.num_blocks = 0
            (self.running if row in self.running else self.best_effort).remove(row)

    def attained(self) -> float:
        """Share of all requests that kept every due time."""
        good = [life for life in self.lives.values() if life.done and not life.refused]
        return sum(life.kept for life in good) / max(1, len(self.lives))


@pytest.fixture(scope="session")
def replay() -> type[Replay]:
    """The independent one-replica replay."""
    return Replay


@pytest.fixture(scope="session")
def load() -> type[Load]:
    """A request of a load."""
    return Load


@pytest.fixture(scope="session")
def tiny_cpu() -> StepModel:
    """A small model on a CPU."""
    return TINY_CPU


@pytest.fixture(scope="session")
def gpu() -> StepModel:
    """An 8B model on a GPU."""
    return GPU


RowMaker = Callable[..., Row]


@pytest.fixture(scope="session")
def a_row() -> RowMaker:
    """Builds rows; unnamed fields are a fresh prompt of 100 tokens."""

    def make(id: int, **changes: object) -> Row:
        values: dict[str, object] = {
            "tier": Tier.PROMISED,
            "arrival_s": 0.0,
            "num_known": 100,
            "num_computed": 0,
            "num_output": 0,
            "due_s": 1.0,
            "tpot_s": 0.05,
            "tightest_tpot_s": 0.05,
            "anchored": False,
            "expected_output": 10.0,
            "expected_sd": 0.0,
            "max_output": 10,
            "weight": 1.0,
            "num_blocks": 0,
            "running": False,
        }
        values.update(changes)
        return Row(id=id, **values)  # type: ignore[arg-type]

    return make


SnapshotMaker = Callable[..., Snapshot]


@pytest.fixture(scope="session")
def a_snapshot() -> SnapshotMaker:
    """Builds snapshots of the tiny CPU machine at time 0."""

    def make(
        running: Sequence[Row] = (),
        waiting: Sequence[Row] = (),
        best_effort: Sequence[Row] = (),
        *,
        now_s: float = 0.0,
        margin_s: float = 0.0,
        limits: Limits | None = None,
        model: StepModel = TINY_CPU,
    ) -> Snapshot:
        limits = limits or Limits(block_size=16, num_blocks=8192)
        held = sum(row.num_blocks for row in (*running, *best_effort))
        return Snapshot(
            now_s=now_s,
            model=model,
            margin_s=margin_s,
            limits=limits,
            free_blocks=limits.num_blocks - held,
            running=running,
            waiting=waiting,
            best_effort=best_effort,
        )

    return make
