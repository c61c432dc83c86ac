"""The latest steps of a replica, as its `/debug/steps` tells them."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUM_STEPS = 240
"""Steps that are kept per replica: what a chart has room for."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step. Best-effort tokens are among the prefill and decode tokens as well."""

    number: int
    predicted_s: float
    measured_s: float
    """From the end of the step before: what the step model predicts."""
    num_prefill_tokens: int
    num_decode_tokens: int
    num_best_effort_tokens: int


class StepLog:
    """Steps of one replica as they are heard of; a replica that starts anew starts it anew."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque(maxlen=NUM_STEPS)
        self.stalled = False
        """Its loop stands still with work waiting."""
        self.mean_ratio: float | None = None
        """Measured over predicted time of its latest steps."""
        self.off = False
        """Whether the replica itself calls its step model off."""

    def path(self, *, last: int) -> str:
        """Where the replica tells which of its `last` steps are not known yet, and how it is."""
        after = self.steps[-1].number if self.steps else 0
        return f"/debug/steps?last={last}&after={after}"

    def hear(self, raw: Any) -> None:
        """Take in an answer. Raises ValueError when it is something else; nothing is kept then."""
        try:
            new = [_step(entry) for entry in raw["steps"]]
            num_steps = int(raw["num_steps"])
            stalled, error = bool(raw["stalled"]), raw["error"]
            ratio, off = error["mean_ratio"], bool(error["off"])
            mean_ratio = None if ratio is None else float(ratio)
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"these are not a replica's steps: {problem!r}") from None
        if self.steps and num_steps < self.steps[-1].number:
            self.steps.clear()
        self.steps.extend(new)
        self.stalled, self.mean_ratio, self.off = stalled, mean_ratio, off


def _step(entry: Mapping[str, Any]) -> Step:
    return Step(
        number=int(entry["number"]),
        predicted_s=float(entry["predicted_s"]),
        measured_s=float(entry["period_s"]),
        num_prefill_tokens=int(entry["num_prefill_tokens"]),
        num_decode_tokens=int(entry["num_decodes"]),
        num_best_effort_tokens=int(entry["num_best_effort_tokens"]),
    )
