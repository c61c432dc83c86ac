"""What it costs, in replica-seconds, to send a request to a replica."""

from sloserve.routing.types import Ask, Replica
from sloserve.wire import Report


def fits(ask: Ask, replica: Replica) -> bool:
    """
    Whether the replica's frontier for the class holds this prompt.

    The frontier speaks of a request that arrives now; this one is `age_s` old, may ask for less
    time than its class, and stands behind prompts sent since the report. That delay D costs an
    absolute TTFT D / (seconds per prompt token) tokens at the upper end, unless that end is the
    model's own length and not time's; for any TTFT, what is left must still cover the prompt's
    own service time. A class that the report does not know yet (added live) fits as far as that
    goes.
    """
    report = replica.report
    assert report is not None
    per_token_s = report.zero_load_per_token_s
    delay_s = max(0.0, ask.age_s + ask.tightened_s) + replica.unreported_tokens * per_token_s
    if delay_s > 0.0:
        zero_load_s = ask.zero_load_s(report)
        queued_s = replica.unreported_tokens * per_token_s
        if ask.ttft.resolve_s(zero_load_s) - ask.age_s - queued_s < zero_load_s:
            return False
    frontier = report.frontier.get(ask.slo_class)
    if frontier is None:
        return True
    max_tokens: float = frontier.max_tokens
    if ask.ttft.target_s is not None and per_token_s > 0.0 and not _capped(ask, report):
        max_tokens -= delay_s / per_token_s
    return frontier.min_tokens <= ask.num_prompt_tokens <= max_tokens


def _capped(ask: Ask, report: Report) -> bool:
    """
    Whether the frontier ends where the model does: then how much longer a prompt time would
    allow is not known, and a delay can't be taken off it. Where the model's length is not known
    either, two classes that end at the same length tell it.
    """
    ends = [frontier.max_tokens for frontier in report.frontier.values()]
    end = report.frontier[ask.slo_class].max_tokens
    if ask.max_prompt_tokens is not None and end >= ask.max_prompt_tokens - 1:
        return True
    return end == max(ends) and ends.count(end) > 1


def may_wait(ask: Ask, replica: Replica) -> bool:
    """
    Whether waiting there could keep the promise, although it does not fit now.

    What is queued there before it, and its own service, must end within its TTFT.
    """
    report = replica.report
    assert report is not None
    queued = report.waiting_prefill_tokens + replica.unreported_tokens
    return queued * report.zero_load_per_token_s <= ask.slack_s(report)


def crowded(ask: Ask, replica: Replica) -> bool:
    """
    Whether so many run there that no step beside them is short enough for the class's TPOT.

    w + (R + 1) * (seconds per token) is less than any such step takes.
    """
    report = replica.report
    assert report is not None
    step_s = (_num_company(replica) + 1) * report.zero_load_per_token_s
    return step_s + report.zero_load_fixed_s > ask.tpot_s


def cost_s(
    ask: Ask,
    replica: Replica,
    *,
    fits: bool,
    expected_output: float,
    saved_tokens: int,
    spread: bool,
) -> float:
    """
    Replica-seconds lost by sending it there.

        waiting and prefill   (tokens queued + own prompt - tokens cached) * s per token
        company               n * R * s per token
        supply lost           n * (w/τ - w/τ_running) * τ      0 when τ >= τ_running

    n = expected output tokens, R = requests running there, τ = the class's tightest TPOT,
    w = fixed seconds of a step: of every τ seconds, w are lost to tokens, so a tighter τ than
    the tightest that runs takes supply from everybody. An idle replica has all to lose, as has
    one where it does not fit and must wait; company costs as much once R * (s per token) = w:
    requests are packed until a batch is compute-bound, and spread beyond. `spread` (overload)
    leaves the supply out.
    """
    report = replica.report
    assert report is not None
    per_token_s = report.zero_load_per_token_s
    queued = report.waiting_prefill_tokens + replica.unreported_tokens
    cost = (queued + max(0, ask.num_prompt_tokens - saved_tokens)) * per_token_s
    cost += expected_output * _num_company(replica) * per_token_s
    if not spread:
        running_s = report.tightest_tpot_s if fits else 0.0
        lost = _supply_lost(ask.tpot_s, running_s, fixed_s=report.zero_load_fixed_s)
        cost += expected_output * lost * ask.tpot_s
    return cost


def _num_company(replica: Replica) -> int:
    report = replica.report
    assert report is not None
    return max(report.num_running + report.num_waiting, replica.num_inflight)


def _supply_lost(tpot_s: float, running_s: float, *, fixed_s: float) -> float:
    """The share of a replica's tokens lost by going from steps of `running_s` to `tpot_s`."""
    if tpot_s <= 0.0 or 0.0 < running_s <= tpot_s:
        return 0.0
    lost = min(1.0, fixed_s / tpot_s)
    return lost - (min(1.0, fixed_s / running_s) if running_s > 0.0 else 0.0)
