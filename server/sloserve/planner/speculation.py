"""
How many tokens to draft for whom in the coming step: by need, then where it pays.

    tokens(r, n) = 1 + sum_{j < n} chance(r, j)      expected of a step with n drafts, never rounded
    need(r)      = tokens due before the end of the step after this one

Each request first gets the fewest drafts that reach its need (when none does: those that are
likely, the rest is for the steps after this one). Then drafts are added where an expected token
costs least, as long as the step yields more tokens per second with them than without: tokens of
prefills count as tokens. So drafts end by themselves where the machine is busy computing (past
the knee of the step model a draft costs what a sure token costs), and nobody is drafted for in
vain when slack is ample. The step never gets longer than the plan has room for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import ceil, inf

from sloserve.perf import StepModel

LEAST_CHANCE = 0.2
"""A draft less likely than this is not worth its place when even all of them miss a need."""
MIN_GAIN = 0.05
"""Drafts that promise less than so much more tokens per second are left alone: the step model and
the chances are not better known than that."""


@dataclass(frozen=True, slots=True)
class Draftable:
    """A decode of the coming step that could get drafts, as many as it has chances."""

    id: int
    context: int  # keys its own token attends to
    chances: Sequence[float]  # that draft j and all before it are accepted; falling
    num_needed: int = 1  # tokens due before the end of the step after this one


@dataclass(frozen=True, slots=True)
class Load:
    """The coming step without drafts, in the terms of the step model."""

    num_tokens: int
    context: float
    pairs: float
    room_s: float = inf  # the step may last so long
    max_tokens: int = 1 << 30


def tokens_due(due_s: float, tpot_s: float, *, by_s: float) -> int:
    """Tokens due before `by_s` when the next one is due at `due_s` and the others follow."""
    if due_s >= by_s:
        return 0
    if tpot_s <= 0.0:
        return 1
    return ceil((by_s - due_s) / tpot_s)


def needed_drafts(chances: Sequence[float], num_needed: int) -> int:
    """The fewest drafts expected to give `num_needed` tokens, else all that are likely."""
    expected = 1.0
    for num, chance in enumerate(chances):
        if expected >= num_needed:
            return num
        expected += chance
    if expected >= num_needed:
        return len(chances)
    return sum(chance >= LEAST_CHANCE for chance in chances)


def least_chance(load: Load, model: StepModel, *, context: int) -> float:
    """A first draft at `context` keys that is less likely than this can't pay, whatever else is."""
    plain_s = model.step_s(load.num_tokens, context=load.context, pairs=load.pairs)
    longer_s = model.step_s(
        load.num_tokens + 1, context=load.context + context + 1, pairs=load.pairs
    )
    return load.num_tokens * (longer_s / plain_s - 1.0) if plain_s > 0.0 else 0.0


def draft_lengths(
    rows: Sequence[Draftable],
    load: Load,
    model: StepModel,
    *,
    serial: bool = False,
    factor: float = 1.0,
) -> dict[int, int]:
    """
    Drafts by id, those with none left out.

    `model` is the corrected one. `serial`: a model writes the drafts one after the other, each
    for all rows at once, and k2 is paid for the longest. `factor`: what steps with drafts take
    beyond the model's word. O(drafts * log drafts), times the longest when `serial`.
    """
    counts = _by_need(rows, load, model, serial=serial, factor=factor)
    best = _worth(rows, load, model, counts, serial=serial, factor=factor)
    return {row_id: count for row_id, count in best.items() if count > 0}


def with_trials(
    counts: Mapping[int, int],
    contexts: Mapping[int, int],
    load: Load,
    model: StepModel,
    *,
    serial: bool = False,
    factor: float = 1.0,
) -> dict[int, int]:
    """
    `counts` and a single draft for the others of `contexts` (by id the keys that a decode's own
    token attends to), in their order, as far as the step has room: what drafts come to is
    learned by trying. The other arguments as for `draft_lengths`.
    """
    found = dict(counts)
    num, longest = sum(counts.values()), max([1, *counts.values()])
    keys = sum(_keys(contexts[row_id], count) for row_id, count in counts.items())
    for row_id, context in contexts.items():
        if row_id in found:
            continue
        num, keys = num + 1, keys + context + 1
        time_s = _step_s(
            load, model, num=num, context=keys, longest=longest if serial else 0, factor=factor
        )
        if time_s > load.room_s or load.num_tokens + num > load.max_tokens:
            break
        found[row_id] = 1
    return found


def _step_s(
    load: Load, model: StepModel, *, num: int, context: float, longest: int, factor: float
) -> float:
    """Seconds of the step with `num` drafts that attend to `context` keys."""
    time_s = model.step_s(
        load.num_tokens + num, context=load.context + context, pairs=load.pairs, drafts=longest
    )
    return time_s * factor if num else time_s


def _keys(context: int, count: int) -> float:
    """Keys that `count` drafts attend to, where a row's own token attends to `context`."""
    return count * context + count * (count + 1) / 2


def _by_need(
    rows: Sequence[Draftable], load: Load, model: StepModel, *, serial: bool, factor: float
) -> dict[int, int]:
    """Drafts that needs ask for, the most urgent first, while there is room."""
    counts: dict[int, int] = {}
    num, context, longest = 0, 0.0, 0
    urgent = [row for row in rows if row.num_needed > 1]
    for row in sorted(urgent, key=lambda row: -row.num_needed):
        count = needed_drafts(row.chances, row.num_needed)
        while count > 0:
            deep = max(longest, count) if serial else 0
            keys = context + _keys(row.context, count)
            time_s = _step_s(
                load, model, num=num + count, context=keys, longest=deep, factor=factor
            )
            if time_s <= load.room_s and load.num_tokens + num + count <= load.max_tokens:
                counts[row.id] = count
                num, context, longest = num + count, keys, deep
                break
            count -= 1
    return counts


def _worth(
    rows: Sequence[Draftable],
    load: Load,
    model: StepModel,
    needed: dict[int, int],
    *,
    serial: bool,
    factor: float,
) -> dict[int, int]:
    """`needed` with drafts added where they pay: the best of all bounds on the longest."""
    start = float(load.num_tokens)
    num, keys, longest = 0, 0.0, 0
    for row in rows if needed else ():
        count = needed.get(row.id, 0)
        start += sum(row.chances[:count])
        num, keys, longest = num + count, keys + _keys(row.context, count), max(longest, count)
    plain_s = _step_s(
        load, model, num=num, context=keys, longest=longest if serial else 0, factor=factor
    )
    best, best_rate = needed, start / plain_s * (1.0 + MIN_GAIN)
    deepest = max((len(row.chances) for row in rows), default=0)
    for most in range(max(1, longest), deepest + 1) if serial else (deepest,):
        # a row's next draft is never cheaper than its last: the cheapest is at the top
        offers = [
            _offer(row, needed.get(row.id, 0), at, model)
            for at, row in enumerate(rows)
            if needed.get(row.id, 0) < min(most, len(row.chances))
        ]
        heapify(offers)
        taken = dict(needed)
        tokens, held, context, rate = start, num, keys, 0.0
        while offers and load.num_tokens + held < load.max_tokens:
            _, depth, at = offers[0]
            row = rows[at]
            context += row.context + depth + 1
            time_s = _step_s(
                load,
                model,
                num=held + 1,
                context=context,
                longest=most if serial else 0,
                factor=factor,
            )
            tokens += row.chances[depth]
            if time_s > load.room_s or tokens / time_s <= rate:
                break
            taken[row.id] = depth + 1
            held, rate = held + 1, tokens / time_s
            if depth + 1 < min(most, len(row.chances)):
                heapreplace(offers, _offer(row, depth + 1, at, model))
            else:
                heappop(offers)
        if rate > best_rate:
            best, best_rate = taken, rate
    return best


def _offer(row: Draftable, depth: int, at: int, model: StepModel) -> tuple[float, int, int]:
    """(seconds for one more expected token, depth, row): smallest first."""
    cost_s = max(model.a0, model.a1) + model.b * (row.context + depth + 1) + 1e-9  # never free
    return cost_s / max(row.chances[depth], 1e-9), depth, at
