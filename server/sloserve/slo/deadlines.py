"""
Token deadlines: one envelope for planner, batcher and scorer.

    due(1) = arrival + TTFT
    due(n) = anchor + sum over tokens 2..n of tpot(stage of that token)
    anchor = emission of the first token            bank: firstToken (default)
           = due(1)                                 bank: promise

A request that runs ahead banks slack; one late token is a broken promise. With the default
anchor a kept promise also satisfies the mean-TPOT score that other tools report.
"""

from sloserve.slo.classes import Bank, Promise


class TokenDeadlines:
    """The due times of one request's tokens, on the clock that `arrival_s` was read from."""

    __slots__ = (
        "_anchor_s",
        "arrival_s",
        "first_emitted_s",
        "kept",
        "num_tokens",
        "promise",
        "stage",
    )

    def __init__(self, promise: Promise, *, arrival_s: float) -> None:
        self.promise = promise
        self.arrival_s = arrival_s
        self.stage = 0
        """Stage of the coming token, as far as known."""
        self.num_tokens = 0
        self.first_emitted_s: float | None = None
        self.kept = True
        """No token was late so far."""
        self._anchor_s = arrival_s

    @property
    def due_s(self) -> float:
        """When the next token is due, if it belongs to `stage`."""
        if self.num_tokens == 0:
            return self.arrival_s + self.promise.ttft_s
        return self._anchor_s + self.promise.tpot_s(self.stage)

    def emit(self, at_s: float, *, stage: int = 0, next_stage: int | None = None) -> bool:
        """
        Account the next token, emitted at `at_s`; True if it was in time.

        `stage` is the token's own stage. `next_stage` is given when this token ends its stage
        (a marker), so that `due_s` of the coming token is right at once.
        """
        self.stage = stage
        if self.num_tokens == 0:
            due_s = self.due_s
            self.first_emitted_s = at_s
            self._anchor_s = at_s if self.promise.bank is Bank.FIRST_TOKEN else due_s
        else:
            due_s = self._anchor_s = self._anchor_s + self.promise.tpot_s(stage)
        in_time = at_s <= due_s
        self.kept = self.kept and in_time
        self.num_tokens += 1
        self.stage = stage if next_stage is None else next_stage
        return in_time

    def emit_many(self, at_s: float, count: int, *, stage: int = 0) -> bool:
        """
        Account `count` (>= 1) tokens of one stage that all appeared at `at_s`; True if in time.

        Due times only rise, so tokens that come together are in time if the first of them is.
        """
        in_time = self.emit(at_s, stage=stage)
        if count > 1:
            in_time = at_s <= self.due_s and in_time
            self.kept = self.kept and in_time
            self._anchor_s += (count - 1) * self.promise.tpot_s(stage)
            self.num_tokens += count - 1
        return in_time


def answer_due_s(promise: Promise, *, arrival_s: float, stages: list[int]) -> float:
    """
    When a whole answer (not streamed) is due: arrival + TTFT + the sum of its TPOTs.

    `stages` holds the stage number of every token, the first included.
    """
    return arrival_s + promise.ttft_s + sum(promise.tpot_s(stage) for stage in stages[1:])
