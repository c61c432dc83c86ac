"""One more token of one request: its deadlines, what is said of it, and what comes next."""

from sloserve.planner import Row
from sloserve.scheduler.batch import Outcome
from sloserve.scheduler.request import Request
from sloserve.slo import Bank


def emit(request: Request, outcome: Outcome, at_s: float) -> float:
    """
    Append the token that was emitted at `at_s`; returns when it was due.

    Brings the row up to date, but for what is expected of the rest. Runs per row and step: in
    the plain case (a stage goes on) the next due time is the last one plus the pace, as
    `TokenDeadlines` has it, without asking it again.
    """
    assert outcome.token_id is not None, f"request {request.id} was sampled but has no token"
    row, deadlines = request.row, request.deadlines
    if outcome.stage != request.stage:
        deadlines.stage = outcome.stage
        _enter_stage(request, outcome.stage)
    due_s = row.due_s
    in_time = deadlines.emit(at_s, stage=outcome.stage, next_stage=outcome.next_stage)
    if row.num_output == 0:
        request.ttft_kept = in_time
        row.anchored = True
        row.due_s = deadlines.due_s
    else:
        request.answer_due_s += row.tpot_s
        request.num_late_after_first += not in_time
        row.due_s = due_s + row.tpot_s
    request.tokens.append(outcome.token_id)
    row.num_known += 1
    row.num_output += 1
    row.max_output -= 1
    row.kept = deadlines.kept
    if deadlines.stage != request.stage:
        _enter_stage(request, deadlines.stage)
    return due_s


def foresee_token(request: Request, row: Row, at_s: float) -> None:
    """Change `row`, a copy of the request's, as `emit` at `at_s` would if the stage goes on."""
    row.kept = row.kept and at_s <= row.due_s
    if row.num_output == 0:
        row.anchored = True
        if request.promise.bank is Bank.FIRST_TOKEN:
            row.due_s = at_s
    row.due_s += row.tpot_s
    row.num_known += 1
    row.num_output += 1
    row.max_output -= 1


def _enter_stage(request: Request, stage: int) -> None:
    request.stage = stage
    row, promise = request.row, request.promise
    row.tpot_s = promise.tpot_s(stage)
    row.tightest_tpot_s = min(s.tpot_s for s in promise.stages[stage:] or promise.stages[-1:])
    row.due_s = request.deadlines.due_s
