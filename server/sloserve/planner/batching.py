"""
The first step of an accepted play-forward as a batch, with the blocks it needs.

Trouble with blocks or slots is met in order: who has no promise gives way, then chunks wait, then a
promised request is preempted: the one with the most time to come back before its next token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sloserve.perf import StepModel
from sloserve.planner.besteffort import evictions
from sloserve.planner.feasibility import First
from sloserve.planner.memory import blocks_for
from sloserve.planner.types import Limits, Row
from sloserve.planner.view import View, solo_s


@dataclass(slots=True)
class Batch:
    """Tokens per id in batch order, who was preempted for them, and the blocks left free."""

    tokens: dict[int, int] = field(default_factory=dict)
    preempted: list[int] = field(default_factory=list)
    free_blocks: int = 0


def compose(
    first: First,
    seen: View,
    rows: dict[int, Row],
    givers: Sequence[Row],
    limits: Limits,
    model: StepModel,
    *,
    free_blocks: int,
) -> Batch:
    """
    `rows` holds the rows of the chunks (running and just selected) by id; `givers` have no
    promise and may hold blocks.
    """
    cut = first.cut_s
    decodes = [row for due, row in seen.decodes if due < cut]
    tokens = {row.id: 1 for row in decodes}
    size = limits.block_size
    batch = Batch(tokens, free_blocks=free_blocks)
    num_chunk_tokens = 0
    if first.chunks:
        _take_slots(batch, first, seen, rows, givers, limits)
    for job_id, count in first.chunks:
        tokens[job_id] = count
        num_chunk_tokens += count
    free_blocks = batch.free_blocks
    if free_blocks >= len(decodes) + num_chunk_tokens // size + 2 * len(first.chunks) and not any(
        rows[job_id].num_blocks == 0 and rows[job_id].num_computed for job_id, _ in first.chunks
    ):
        batch.free_blocks = free_blocks - (
            sum(row.num_blocks * size < row.num_known for row in decodes)
            + num_chunk_tokens // size
            + len(first.chunks)
        )
        return batch

    def need(row: Row, count: int) -> int:
        return max(0, blocks_for(row.num_computed + count, size) - row.num_blocks)

    wanted = sum(need(row, 1) for row in decodes)
    wanted += sum(need(rows[job_id], count) for job_id, count in first.chunks)
    if wanted > batch.free_blocks:
        staying = [row for row in givers if row.id not in batch.preempted]
        for victim in evictions(staying, num_blocks=wanted - batch.free_blocks):
            batch.preempted.append(victim.id)
            batch.free_blocks += victim.num_blocks
    for job_id, count in reversed(first.chunks):
        if wanted <= batch.free_blocks:
            break
        row = rows[job_id]
        short = wanted - batch.free_blocks
        kept = max(
            0, min(count, (need(row, count) - short + row.num_blocks) * size - row.num_computed)
        )
        wanted -= need(row, count) - (need(row, kept) if kept else 0)
        if kept:
            tokens[job_id] = kept
        else:
            del tokens[job_id]
    holding = [row for row in rows.values() if row.num_blocks > 0]
    due = {row.id: due for due, row in seen.decodes}
    due.update((job.id, job.due_s) for job in seen.jobs)

    def comeback_s(row: Row) -> float:
        return due.get(row.id, 0.0) - solo_s(model, row.num_known, 0)

    while wanted > batch.free_blocks and holding:
        victim = max(holding, key=comeback_s)
        holding.remove(victim)
        batch.preempted.append(victim.id)
        batch.free_blocks += victim.num_blocks
        if victim.id in tokens:
            wanted -= need(victim, tokens.pop(victim.id))
    batch.free_blocks -= wanted
    return batch


def _take_slots(
    batch: Batch,
    first: First,
    seen: View,
    rows: dict[int, Row],
    givers: Sequence[Row],
    limits: Limits,
) -> None:
    """Newly started prefills need slots: givers leave theirs, the least progress lost first."""
    held = seen.totals.num_holders + len(givers)
    if held + len(first.chunks) <= limits.max_running:
        return  # even if all of them held blocks
    held = sum(row.num_blocks > 0 for row in (*rows.values(), *givers))
    fresh = sum(rows[job_id].num_blocks == 0 for job_id, _ in first.chunks)
    holding = sorted((row for row in givers if row.num_blocks), key=lambda row: row.num_computed)
    for victim in holding[: max(0, held + fresh - limits.max_running)]:
        batch.preempted.append(victim.id)
        batch.free_blocks += victim.num_blocks
