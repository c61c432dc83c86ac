"""
Requests without a promise: what is left of a step, and never nothing.

They are served in order of arrival, decodes first (that frees blocks soonest), prefills in
chunks like everyone's. What they get lies inside the planned step: up to its cap when no promised
prefill is left over, and else the reserve that every play-forward kept free for them (`trickle`).
The reserve grows with the wait of the oldest, so that one always moves on.
"""

from collections.abc import Iterable, Sequence

from sloserve.perf import StepModel
from sloserve.planner.memory import blocks_for
from sloserve.planner.settings import Settings
from sloserve.planner.types import Row


def trickle_s(rows: Sequence[Row], settings: Settings, *, now_s: float, limit_s: float) -> float:
    """Seconds of every step that are theirs whatever else waits; 0 when there are none."""
    if not rows:
        return 0.0
    age_s = now_s - rows[0].arrival_s
    grown = min(1.0, max(0.0, age_s / settings.trickle_full_s))
    share = settings.trickle_share + grown * (settings.trickle_share_most - settings.trickle_share)
    return share * limit_s


def fill(
    rows: Sequence[Row],
    model: StepModel,
    *,
    budget_s: float,
    num_tokens: int,
    max_tokens: int,
    free_blocks: int,
    headroom_blocks: int,
    free_slots: int,
    block_size: int,
) -> dict[int, int]:
    """
    Tokens per id that fit into `budget_s` on top of a step of `num_tokens`. A row that holds no
    blocks yet starts only while `headroom_blocks` stay free after its whole prompt.
    """
    taken: dict[int, int] = {}
    per_token_s = max(model.a0, model.a1)
    started = [row for row in rows if row.num_blocks > 0]
    fresh = [row for row in rows if row.num_blocks == 0]
    for row in (*(r for r in started if r.decodes), *(r for r in started if not r.decodes), *fresh):
        if budget_s <= 0 or num_tokens >= max_tokens:
            break
        if row.num_blocks == 0:
            whole = blocks_for(row.num_known, block_size)
            if free_slots <= 0 or free_blocks - whole < headroom_blocks:
                break
        if row.decodes:
            count = 1
            cost_s = per_token_s + model.b * row.num_known
            if cost_s > budget_s and taken:
                continue
        else:
            slope = per_token_s + model.d * row.num_computed
            affordable = int(budget_s / slope) if slope > 0 else row.num_left  # tokens may be free
            count = min(row.num_left, affordable, max_tokens - num_tokens)
            count = _within(count, budget_s, per_token_s, model.d, row.num_computed)
            if count <= 0:
                continue
            cost_s = per_token_s * count + model.d * count * (row.num_computed + count / 2)
        new = blocks_for(row.num_computed + count, block_size) - row.num_blocks
        if new > free_blocks:
            continue
        free_slots -= row.num_blocks == 0
        free_blocks -= max(0, new)
        budget_s -= cost_s
        num_tokens += count
        taken[row.id] = count
    return taken


def _within(count: int, budget_s: float, per_token_s: float, d: float, prior: int) -> int:
    """The largest chunk up to `count` whose tokens and pairs cost at most `budget_s`."""
    if count <= 0 or d <= 0:
        return max(0, count)
    linear = per_token_s + d * prior
    root = ((linear * linear + 2 * d * budget_s) ** 0.5 - linear) / d
    return min(count, int(root))


def evictions(rows: Iterable[Row], *, num_blocks: int) -> list[Row]:
    """Who gives up blocks until `num_blocks` are free: the least progress lost first."""
    out: list[Row] = []
    for row in sorted((r for r in rows if r.num_blocks > 0), key=lambda r: r.num_computed):
        if num_blocks <= 0:
            break
        out.append(row)
        num_blocks -= row.num_blocks
    return out
