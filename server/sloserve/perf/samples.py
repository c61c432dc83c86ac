"""What a measured step looked like, in the terms of the step-time model."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class BatchKind(StrEnum):
    """Errors are reported per kind: a model can be right on one and wrong on another."""

    DECODE = "decode"
    PREFILL = "prefill"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Sample:
    """One step (or the median of equal ones) and the seconds that it took."""

    num_tokens: int
    context: float  # K: sum over decodes of the tokens they look back on
    pairs: float  # A: sum over prefill chunks of n*(prior + n/2)
    time_s: float
    drafts: int = 0

    @property
    def kind(self) -> BatchKind:
        """By what attends: decodes, prefill chunks, or both."""
        if not self.pairs:
            return BatchKind.DECODE
        return BatchKind.MIXED if self.context else BatchKind.PREFILL


def sample_of(
    *, decodes: Iterable[int], chunks: Iterable[tuple[int, int]], time_s: float, drafts: int = 0
) -> Sample:
    """
    The sample of a batch: `decodes` holds each decode's context (tokens, its own included),
    `chunks` each prefill chunk as (prior, count). A draft model wrote `drafts` for each decode.
    """
    contexts, parts = list(decodes), list(chunks)
    contexts = [context + j for context in contexts for j in range(1 + drafts)]
    return Sample(
        num_tokens=len(contexts) + sum(count for _, count in parts),
        context=float(sum(contexts)),
        drafts=drafts,
        pairs=sum(count * (prior + count / 2) for prior, count in parts),
        time_s=time_s,
    )
