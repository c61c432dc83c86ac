"""One more token of one request: its deadlines, what is said of it, and what comes next."""

from sloserve.scheduler.batch import Outcome
from sloserve.scheduler.request import Request


def emit(request: Request, outcome: Outcome, at_s: float) -> tuple[bool, float]:
    """
    Append the token that was emitted at `at_s`; (was it in time, when it was due).

    Brings the row up to date, but for what is expected of the rest.
    """
    assert outcome.token_id is not None, f"request {request.id} was sampled but has no token"
    row, deadlines, promise = request.row, request.deadlines, request.promise
    first = deadlines.num_tokens == 0
    deadlines.stage = outcome.stage
    due_s = deadlines.due_s
    in_time = deadlines.emit(at_s, stage=outcome.stage, next_stage=outcome.next_stage)
    if first:
        request.ttft_kept = in_time
        row.anchored = True
    else:
        request.answer_due_s += promise.tpot_s(outcome.stage)
        request.num_late_after_first += not in_time
    request.tokens.append(outcome.token_id)
    row.num_known += 1
    row.num_output += 1
    row.max_output -= 1
    row.kept = deadlines.kept
    row.due_s = deadlines.due_s
    if deadlines.stage != request.stage:
        request.stage = deadlines.stage
        row.tpot_s = promise.tpot_s(request.stage)
        rest = promise.stages[request.stage :] or promise.stages[-1:]
        row.tightest_tpot_s = min(stage.tpot_s for stage in rest)
    return in_time, due_s
