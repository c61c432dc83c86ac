"""Everything that is known of a running service, for the terminal and for the page."""

from collections import deque
from dataclasses import dataclass, field

from sloserve.local.counts import History
from sloserve.local.overview import Overview
from sloserve.local.risk import Trouble
from sloserve.local.steps import StepLog

NUM_EVENTS = 50


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was told; `at_s` is monotonic."""

    number: int
    at_s: float
    line: str


@dataclass(slots=True)
class Scene:
    """What is shown; `progress` says what each process that is not ready does."""

    title: str
    overview: Overview | None = None
    """None while the gateway does not answer."""
    latest: Overview | None = None
    """The last one there was."""
    service: str = ""
    url: str = ""
    """Where clients send their requests, without a path."""
    names: dict[str, str] = field(default_factory=dict)
    """Of the replicas that were started, by address."""
    starting: set[str] = field(default_factory=set)
    """Addresses of those that have never been ready."""
    progress: dict[str, str] = field(default_factory=dict)
    was_ready: bool = False
    """Whether a replica was ready at any time."""
    draining: bool = False
    history: History = field(default_factory=History)
    steps: dict[str, StepLog] = field(default_factory=dict)
    """By a replica's address."""
    troubles: dict[str, Trouble] = field(default_factory=dict)
    """What is wrong now and since when; kept by `risk.follow`."""
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=NUM_EVENTS))

    def note(self, line: str, *, now_s: float) -> None:
        """Remember something that was told."""
        number = self.events[-1].number + 1 if self.events else 1
        self.events.append(Event(number, now_s, line))
