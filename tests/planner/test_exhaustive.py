"""
The planner's test against an independent exhaustive scheduler on tiny cases.

The scheduler tries every composition of every step (chunks of 50 tokens, any set of decodes), so
what it serves can be served. A timid test of one's own would pass a comparison with itself.
"""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from sloserve.perf import StepModel
from sloserve.planner import Row, Snapshot
from sloserve.planner.policies import make_policy

UNIT = 50
State = tuple[tuple[int, int, int, float], ...]  # (units to prefill, done tokens, left, due)


class TooLarge(Exception):
    """The search gave up."""


class Exhaustive:
    """Can all of `rows` keep every due time, whatever the order?"""

    def __init__(self, model: StepModel, rows: list[Row]) -> None:
        self.model = model
        self.tpots = [row.tpot_s for row in rows]
        self.start: State = tuple(
            (
                row.num_left // UNIT if not row.decodes else 0,
                row.num_known,
                row.max_output,
                row.due_s,
            )
            for row in rows
        )
        self.failed: set[tuple[int, State]] = set()
        self.num_nodes = 0

    def servable(self) -> bool:
        """The answer; raises TooLarge when the search is too long."""
        return self._from(0.0, self.start)

    def _from(self, t: float, state: State) -> bool:
        if all(left == 0 for _, _, left, _ in state):
            return True
        key = (round(t * 1e7), tuple((u, k, n, round(d, 7)) for u, k, n, d in state))
        if key in self.failed:
            return False
        self.num_nodes += 1
        if self.num_nodes > 4000:
            raise TooLarge
        for choice in self._choices(state):
            after = self._step(t, state, choice)
            if after is not None and self._from(*after):
                return True
        self.failed.add(key)
        return False

    def _choices(self, state: State) -> Iterator[tuple[int, ...]]:
        """What each gets in a step: units of a prefill, 0 or 1 for a decode; large steps first."""
        options = [
            range(0) if left == 0 else range(units or 1, -1, -1) for units, _, left, _ in state
        ]
        ranges = [list(option) or [0] for option in options]
        found = [choice for choice in itertools.product(*ranges) if any(choice)]
        return iter(sorted(found, key=lambda c: -sum(c)))

    def _step(self, t: float, state: State, choice: tuple[int, ...]) -> tuple[float, State] | None:
        tokens, context, pairs = 0, 0.0, 0.0
        for (units, known, _, _), n in zip(state, choice, strict=True):
            if units and n:
                count = n * UNIT
                tokens += count
                pairs += count * (known - units * UNIT + count / 2)
            elif n:
                tokens += 1
                context += known
        t += self.model.step_s(tokens, context=context, pairs=pairs)
        after = []
        for (units, known, left, due), n, tpot in zip(state, choice, self.tpots, strict=True):
            if left == 0:
                after.append((units, known, left, due))
                continue
            if t > due:  # late whether it came now or comes later
                return None
            if units:
                units -= n
                if units == 0:
                    known, left, due = known + 1, left - 1, t + tpot
            elif n:
                known, left, due = known + 1, left - 1, due + tpot
            after.append((units, known, left, due))
        return t, tuple(after)


def a_case(rng: random.Random, a_row: Callable[..., Row]) -> tuple[list[Row], list[Row]]:
    """One to two decodes that run, two to three prompts that wait."""
    running, waiting = [], []
    for i in range(rng.randint(0, 2)):
        known = rng.randint(20, 400)
        left = rng.randint(1, 4)
        running.append(
            a_row(
                i,
                num_known=known,
                num_computed=known - 1,
                num_output=1,
                due_s=rng.uniform(0.01, 0.06),
                tpot_s=rng.choice((0.012, 0.025, 0.05)),
                anchored=True,
                expected_output=float(left),
                max_output=left,
                num_blocks=-(-known // 16),
                running=True,
            )
        )
    for i in range(rng.randint(1, 4 - len(running))):
        left = rng.randint(1, 3)
        waiting.append(
            a_row(
                10 + i,
                num_known=UNIT * rng.randint(1, 4),
                due_s=rng.uniform(0.008, 0.08),
                tpot_s=rng.choice((0.012, 0.025, 0.05)),
                expected_output=float(left),
                max_output=left,
                may_wait=False,
            )
        )
    return running, waiting


@pytest.mark.parametrize("seed", range(3))
def test_what_can_be_served_is_admitted(
    seed: int, a_row: Callable[..., Row], a_snapshot: Callable[..., Snapshot], tiny_cpu: StepModel
) -> None:
    rng = random.Random(seed)
    servable = accepted = 0
    for _ in range(150):
        running, waiting = a_case(rng, a_row)
        try:
            if not Exhaustive(tiny_cpu, [*running, *waiting]).servable():
                continue
        except TooLarge:
            continue
        servable += 1
        plan = make_policy("sloserve").plan(a_snapshot(running, waiting))
        accepted += len(plan.admitted) == len(waiting) and not plan.relegated
    assert servable >= 50
    assert accepted >= 0.95 * servable, f"{accepted} of {servable}"
