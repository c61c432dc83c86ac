"""The knobs of the `sloserve` policy, with the reason of each default."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Found by replay of traces; none of them is a promise."""

    step_limit_factor: float = 12.0
    """Longest planned step, in empty steps. Without a limit newcomers' TTFT pays; too tight a
    limit pays the fixed part of a step more often."""

    z: float = 1.0
    """Standard deviations on the memory peak under unknown output lengths. Hardly matters:
    preempted requests with banked tokens often keep their promise."""

    min_chunk_tokens: int = 1
    """Smaller prefill chunks are not worth a row unless nothing else runs."""

    trickle_share: float = 0.02
    """Part of every step kept for best effort while some waits, at first."""

    trickle_share_most: float = 0.1
    """The same when the oldest has waited `trickle_full_s`."""

    trickle_full_s: float = 60.0

    headroom_share: float = 0.05
    """Best effort starts only while so much of the pool stays free."""

    relegate_late_s: float = 0.005
    """A running request is relegated when the play-forward, margin left out, says it is late by
    more than this: a prediction is not yet a broken promise."""

    verify_steps: int = 8
    """The running set is played forward again at least every so many steps while prefills run."""

    guard_factor: float = 1.5
    """Newcomers are tried on a machine slower than the step model says by so many times what steps
    take beyond their prediction on average (`Snapshot.excess_share`). A set that just fits leaves
    nothing to make up for it: on a noisy machine every fourth tight promise then broke. On an
    exact one it costs nothing."""

    safety: float = 1.75
    """A step uses at most one part in so many of the earliest decode's slack, and who waits keeps
    as much more: a straggling step (+75 %) then breaks no promise."""
