"""What serving teaches: how long answers get, per class, and how long steps take."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from sloserve.planner import Row
from sloserve.scheduler.request import Request

MEDIAN_TOKENS = 256
"""The median prompt of a class before any came."""
REMEMBERED_PROMPTS = 64
REFRESH_TOKENS = 8
"""A running request's expectation is asked for anew every so many tokens, and counted down
between: the law changes slowly, the step is short."""


class Law(Protocol):
    """The output lengths of one class, as seen so far (`sloserve.planner.lengths.LengthLaw`)."""

    def observe(self, length: int) -> None:
        """Learn the length of an answer that ended by itself or at its limit."""
        ...

    def conditional(self, n_so_far: int, max_left: int) -> tuple[float, float]:
        """Mean and standard deviation of the tokens still to come after `n_so_far`."""
        ...


class Correction(Protocol):
    """The online correction of the stored profile (`sloserve.perf.OnlineCorrection`)."""

    @property
    def ratio(self) -> float:
        """Actual over predicted, as of late."""
        ...

    @property
    def margin_s(self) -> float:
        """What to subtract from deadlines for the model's error."""
        ...

    @property
    def excess_share(self) -> float:
        """What steps take beyond their corrected prediction, on average."""
        ...

    def observe(self, predicted_s: float, actual_s: float) -> None:
        """Learn from one step; `predicted_s` is the stored profile's word."""
        ...


class Laws:
    """The laws of all classes; a class gets its own on first sight."""

    def __init__(self, new_law: Callable[[], Law]) -> None:
        self._new_law = new_law
        self._of: dict[str, Law] = {}
        self._prompts: dict[str, deque[int]] = {}  # latest prompt lengths, by class

    def of(self, slo_class: str) -> Law:
        """The law of a class."""
        law = self._of.get(slo_class)
        if law is None:
            law = self._of[slo_class] = self._new_law()
        return law

    def arrived(self, request: Request) -> None:
        """Learn the length of a prompt."""
        name = request.promise.slo_class
        latest = self._prompts.setdefault(name, deque(maxlen=REMEMBERED_PROMPTS))
        latest.append(request.num_prompt)

    def median_prompt(self, slo_class: str) -> int:
        """The median of the class's latest prompts, in tokens; `MEDIAN_TOKENS` before any."""
        latest = self._prompts.get(slo_class)
        return sorted(latest)[len(latest) // 2] if latest else MEDIAN_TOKENS

    def observe(self, request: Request) -> None:
        """Learn from a finished request."""
        self.of(request.promise.slo_class).observe(request.num_output)

    def expect(self, request: Request, row: Row) -> None:
        """Write what is expected of the rest of `request` into `row`, its own or a foreseen one."""
        if request.known_output is not None:
            row.expected_output = float(max(1, request.known_output - row.num_output))
            row.expected_sd = 0.0
        else:
            law = self.of(request.promise.slo_class)
            mean, row.expected_sd = law.conditional(row.num_output, row.max_output)
            row.expected_output = min(max(1.0, mean), float(max(1, row.max_output)))

    def count_down(self, request: Request, row: Row) -> None:
        """One more token came: the rest is one less, and asked anew now and then."""
        if row.num_output % REFRESH_TOKENS == 0:
            self.expect(request, row)
            return
        left = row.expected_output - 1.0
        if left < 1.0:
            left = 1.0
        if left > row.max_output:
            left = float(row.max_output)
        row.expected_output = left
