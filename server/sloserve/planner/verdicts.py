"""Why a promise can't be kept, and when it could."""

from sloserve.errors import Reason
from sloserve.planner.feasibility import Play
from sloserve.planner.types import Verdict

LEAST_RETRY_S = 0.05


def refused(
    play: Play,
    *,
    ttft_left_s: float,
    ttft_s: float,
    tpot_s: float,
    earliest_s: float,
) -> Verdict:
    """
    The verdict on one whose joining made `play` fail.

    `earliest_s` is when its first token would come behind everything accepted. Sent again after
    x seconds it would find x seconds less of work ahead and the whole TTFT, hence retry_after.
    """
    retry_s = max(LEAST_RETRY_S, earliest_s - ttft_s)
    if play.reason is Reason.TPOT:
        message = (
            f"a token every {1e3 * tpot_s:.0f} ms can't be kept beside those already promised;"
            f" by itself the first token could come in {earliest_s:.3f} s"
        )
    elif earliest_s > ttft_left_s:
        left_s = max(0.0, ttft_left_s)
        message = f"needs the first token in {left_s:.3f} s, earliest is {earliest_s:.3f} s"
    else:
        message = (
            f"the first token in {max(0.0, ttft_left_s):.3f} s would break a promise already made;"
            f" earliest without that is {earliest_s:.3f} s"
        )
    return Verdict(play.reason or Reason.TTFT, message, earliest_s, retry_s)


def no_blocks(*, needed: int, num_blocks: int, earliest_s: float, until_free_s: float) -> Verdict:
    """The verdict on one whose joining would make the projected peak exceed the pool."""
    return Verdict(
        Reason.KV,
        f"KV blocks would run out: the projected peak is {needed} of {num_blocks} blocks;"
        f" enough should be free in {until_free_s:.2f} s",
        max(earliest_s, until_free_s),
        max(LEAST_RETRY_S, until_free_s),
    )


def no_slot(
    *, max_running: int, ttft_left_s: float, earliest_s: float, until_free_s: float
) -> Verdict:
    """
    The verdict on one that comes while as many run as may.

    `earliest_s` is when its first token would come if one more might run; `until_free_s` is when
    enough of the others should have ended, by the lengths expected of them.
    """
    return Verdict(
        Reason.TTFT,
        f"{max_running} requests run, and no more may at once (engine.maxRunning); one should end"
        f" in {until_free_s:.2f} s, the first token is due in {max(0.0, ttft_left_s):.3f} s",
        until_free_s + earliest_s,
        max(LEAST_RETRY_S, until_free_s),
    )


def hopeless(*, ttft_left_s: float, solo_s: float, ttft_s: float) -> Verdict:
    """The verdict on one that would be late even alone."""
    return Verdict(
        Reason.TTFT,
        f"needs the first token in {max(0.0, ttft_left_s):.3f} s, its prefill alone takes"
        f" {solo_s:.3f} s",
        solo_s,
        max(LEAST_RETRY_S, solo_s - ttft_s),
    )
