"""Selection against brute force over subsets, and replayed by an independent simulator."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from sloserve.perf import StepModel
from sloserve.planner import Limits, Row, Snapshot, Tier
from sloserve.planner.decision import Decision
from sloserve.planner.policies import make_policy
from sloserve.planner.selection import select
from sloserve.planner.settings import Settings
from sloserve.planner.view import Ask, ask_of


@dataclass
class Item:
    """A job on a machine that does one after the other."""

    id: int
    due_s: float
    work_s: float
    value: float = 1.0
    firm: bool = False

    @property
    def density(self) -> float:
        return self.value / self.work_s


def in_turn(items: Sequence[Item]) -> float | None:
    """Due time of the first late one when done by deadline; None when none is late."""
    t = 0.0
    for item in sorted(items, key=lambda i: i.due_s):
        t += item.work_s
        if t > item.due_s:
            return item.due_s
    return None


def test_the_largest_before_the_late_one_goes_not_the_largest_of_all() -> None:
    long = Item(1, due_s=10.0, work_s=3.0)
    middle = Item(2, due_s=2.0, work_s=1.8)
    short = Item(3, due_s=1.9, work_s=0.5)
    chosen, refused = select([long, middle], [short], in_turn)
    assert {c.id for c in chosen} == {1, 3}
    assert [c.id for c in refused] == [2]


def test_who_was_answered_for_is_never_dropped() -> None:
    firm = Item(1, due_s=2.0, work_s=1.8, firm=True)
    chosen, refused = select([firm], [Item(2, due_s=2.0, work_s=0.5)], in_turn)
    assert [c.id for c in chosen] == [1]
    assert [c.id for c in refused] == [2]


def test_a_heavy_weight_outlasts_a_light_one_of_equal_work() -> None:
    light, heavy = Item(1, 1.0, 0.8), Item(2, 1.0, 0.8, value=3.0)
    chosen, _ = select([light], [heavy], in_turn)
    assert [c.id for c in chosen] == [2]


# --- the real feasibility -------------------------------------------------------------


def a_world(
    rng: random.Random, *, num_running: int, num_waiting: int, tiers: int, banked: bool, blocks: int
) -> tuple[list[Row], list[Row], Limits]:
    """Decodes that run and prompts that wait."""
    tpots = (0.05, 0.1, 0.2)[:tiers]
    rows = []
    for i in range(num_running):
        tpot = rng.choice(tpots)
        known = rng.randint(100, 1500)
        left = rng.randint(1, 300)
        bank = rng.uniform(0.0, 1.0) if banked else 0.0
        rows.append(
            Row(
                id=i,
                tier=Tier.PROMISED,
                arrival_s=-1.0,
                num_known=known,
                num_computed=known - 1,
                num_output=5,
                due_s=tpot * rng.uniform(0.7, 1.0) + bank,
                tpot_s=tpot,
                tightest_tpot_s=tpot,
                anchored=True,
                expected_output=float(left),
                expected_sd=0.0,
                max_output=left,
                weight=1.0,
                num_blocks=-(-(known - 1) // 16),
                running=True,
            )
        )
    waiting = []
    for i in range(num_waiting):
        tpot = rng.choice(tpots)
        prompt = rng.randint(100, 1500)
        left = rng.randint(1, 300)
        waiting.append(
            Row(
                id=1000 + i,
                tier=Tier.PROMISED,
                arrival_s=0.0,
                num_known=prompt,
                num_computed=0,
                num_output=0,
                due_s=rng.choice((1.5, 3, 5)) * (0.004 + 1e-4 * prompt),
                tpot_s=tpot,
                tightest_tpot_s=tpot,
                anchored=False,
                expected_output=float(left),
                expected_sd=0.0,
                max_output=left,
                weight=1.0,
                num_blocks=0,
                running=False,
                may_wait=False,
            )
        )
    return rows, waiting, Limits(block_size=16, num_blocks=blocks)


def best_number(decision: Decision, asks: list[Ask], at_least: int) -> int:
    """The most that can join by the planner's own test, by trying every larger subset."""
    for size in range(len(asks), at_least, -1):
        if any(decision.accept(subset) for subset in itertools.combinations(asks, size)):
            return size
    return at_least


CELLS = [
    (running, tiers, banked, tight)
    for running in (8, 32)
    for tiers in (1, 2, 3)
    for banked in (False, True)
    for tight in (False, True)
]


def test_selection_reaches_brute_force(
    a_snapshot: Callable[..., Snapshot], tiny_cpu: StepModel
) -> None:
    rng = random.Random(4)
    shares = {}
    for num_running, tiers, banked, tight in CELLS:
        got = best = 0
        for draw in range(6):
            running, waiting, limits = a_world(
                rng,
                num_running=num_running,
                num_waiting=10 if draw == 0 else 8,
                tiers=tiers,
                banked=banked,
                blocks=8192,
            )
            if tight:  # room for about half of those who wait
                held = sum(-(-(r.num_known + r.max_output) // 16) for r in running)
                asked = sum(-(-(r.num_known + r.max_output) // 16) for r in waiting)
                limits = Limits(block_size=16, num_blocks=int(0.9 * held + 0.4 * asked))
            snapshot = a_snapshot(running, waiting, limits=limits)
            plan = make_policy("sloserve").plan(snapshot)
            if plan.relegated:
                continue
            decision = Decision(snapshot, Settings())
            asks = [ask_of(r, decision.base_s, tiny_cpu, firm=False) for r in waiting]
            got += len(plan.admitted)
            best += best_number(decision, asks, len(plan.admitted))
        if best:
            shares[num_running, tiers, banked, tight] = got / best
    assert len(shares) > 12
    assert sum(shares.values()) / len(shares) >= 0.99
    assert min(shares.values()) >= 0.97, shares


@pytest.mark.parametrize("seed", range(12))
def test_what_is_admitted_keeps_every_promise_in_an_independent_replay(
    seed: int, replay: Callable[..., object], load: Callable[..., object]
) -> None:
    rng = random.Random(seed)
    running, waiting, limits = a_world(
        rng,
        num_running=rng.choice((4, 20, 40)),
        num_waiting=10,
        tiers=rng.choice((1, 2, 3)),
        banked=seed % 2 == 0,
        blocks=8192 if seed % 3 else 4000,
    )
    world = replay(policy=make_policy("sloserve"), limits=limits, strict=True)
    for row in (*running, *waiting):
        one = load(row.arrival_s, row.num_known, row.num_output + row.max_output, 1.0, row.tpot_s)
        world.place(replace(row), one)  # type: ignore[attr-defined]
    world.run([])  # type: ignore[attr-defined]
    lives = world.lives.values()  # type: ignore[attr-defined]
    assert not any(life.gave_up for life in lives)
    assert any(life.done and life.kept and not life.refused for life in lives)
