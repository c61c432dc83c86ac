"""The values a router looks at, and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sloserve.errors import Reason
from sloserve.slo import Ttft
from sloserve.wire import Report

if TYPE_CHECKING:
    from sloserve.routing.state import RoutingState

FRESH_S = 1.0
"""A report older than this (seconds) is unknown, never infinite headroom."""


@dataclass(frozen=True, slots=True)
class Replica:
    """
    A replica as a router sees it.

    The report, its age, and what this router itself sent there: `num_inflight` requests that
    have not ended, `unreported_tokens` prompt tokens sent since the report was made.
    """

    name: str
    report: Report | None = None  # None: it never answered
    age_s: float = 0.0
    num_inflight: int = 0
    unreported_tokens: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether it takes requests, as far as known."""
        return self.report is not None and self.report.state == "ready"

    @property
    def fresh(self) -> bool:
        """Whether what it says still counts."""
        return self.report is not None and self.age_s <= FRESH_S

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits there: what does not fit now never will."""
        return (
            self.report is not None
            and self.report.num_running == 0
            and self.report.num_waiting == 0
            and self.num_inflight == 0
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """
    A request that wants a replica.

    `num_prompt_tokens` is known or estimated; `prefixes` are (key, tokens) of its prompt's
    beginnings, shortest first. `exclude` names replicas that declined it, or died under it, and
    have not reported since. `hops` replicas were asked before, `max_hops` may be asked in all.
    """

    slo_class: str
    num_prompt_tokens: int
    ttft: Ttft
    tpot_s: float  # the tightest of its stages
    age_s: float = 0.0  # since arrival
    tightened_s: float = 0.0  # how much less TTFT it asks for than its class
    max_prompt_tokens: int | None = None  # the model's length, where it is known
    session: str = ""
    prefixes: tuple[tuple[int, int], ...] = ()
    exclude: frozenset[str] = frozenset()
    hops: int = 0
    max_hops: int = 4

    def zero_load_s(self, report: Report) -> float:
        """Seconds this prompt alone takes on that replica."""
        return report.zero_load_fixed_s + report.zero_load_per_token_s * self.num_prompt_tokens

    def slack_s(self, report: Report) -> float:
        """Seconds it may still wait before its own service time there breaks its TTFT."""
        zero_load_s = self.zero_load_s(report)
        return self.ttft.resolve_s(zero_load_s) - self.age_s - zero_load_s


@dataclass(frozen=True, slots=True)
class Choice:
    """
    Where a request goes. Exactly one of three:

    - `replica` is a name: send it there; on the last hop the replica may degrade it;
    - `pend_s` > 0: nobody can take it now, and so many seconds of slack are left to wait in;
    - else nobody is ready, `reason` says why.
    """

    replica: str | None = None
    last_hop: bool = False
    pend_s: float = 0.0
    reason: Reason = Reason.NONE


class Router(Protocol):
    """A way to choose."""

    def __call__(self, ask: Ask, replicas: Sequence[Replica], state: "RoutingState") -> Choice:
        """Where `ask` goes now. Looks, and changes nothing but the router's own turn."""
        ...


def nobody_ready(replicas: Sequence[Replica]) -> Choice:
    """The answer when no replica takes requests: loading, draining, or none there."""
    states = {r.report.state for r in replicas if r.report is not None}
    if "loading" in states:
        return Choice(reason=Reason.LOADING)
    if states == {"draining"}:
        return Choice(reason=Reason.DRAINING)
    return Choice(reason=Reason.REPLICAS)
