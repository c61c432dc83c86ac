"""SLO classes as declared, and promises as made to one request."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Bank(StrEnum):
    """Where the token deadlines are anchored (`deadlines.py`)."""

    FIRST_TOKEN = "firstToken"
    PROMISE = "promise"


class OnInfeasible(StrEnum):
    """What happens once waiting can't keep the promise."""

    DEGRADE = "Degrade"
    DECLINE = "Decline"


class Decision(StrEnum):
    """What became of a request's promise; `x-slo-decision` and the metric label."""

    ADMITTED = "admitted"
    DEFERRED = "deferred"  # admitted after a wait
    DEGRADED = "degraded"  # served best-effort
    DECLINED = "declined"


@dataclass(frozen=True, slots=True)
class Ttft:
    """
    Time to first token: an absolute target, or a slowdown of the prompt's zero-load time.

    Exactly one of `target_s` and `slowdown` is set. The zero-load time comes from the stored
    profile, never from the online-corrected one: contention would loosen promises.
    """

    target_s: float | None = None
    slowdown: float | None = None
    floor_s: float = 0.0

    def resolve_s(self, zero_load_s: float) -> float:
        """Seconds allowed for a prompt whose prefill alone takes `zero_load_s`."""
        if self.target_s is not None:
            return self.target_s
        assert self.slowdown is not None
        return max(self.floor_s, self.slowdown * zero_load_s)


@dataclass(frozen=True, slots=True)
class Stage:
    """
    A part of an answer with its own TPOT (seconds per output token).

    `until` is the marker text that ends the stage (`</think>`); None on the last stage, and on
    stages that the client names (`x-slo-stage`).
    """

    name: str
    tpot_s: float
    until: str | None = None


@dataclass(frozen=True, slots=True)
class SloClass:
    """A named promise, as the manifest declares it."""

    name: str
    ttft: Ttft
    stages: tuple[Stage, ...]  # at least one; a plain `tpot` is one stage named "decode"
    objective: float = 0.99  # share of requests, 0..1
    on_infeasible: OnInfeasible = OnInfeasible.DEGRADE
    weight: float = 1.0
    tightest_ttft_s: float | None = None  # how far headers may tighten; None: not at all
    tightest_tpot_s: float | None = None
    bank: Bank = Bank.FIRST_TOKEN

    @property
    def tightest_stage_tpot_s(self) -> float:
        """The least TPOT (seconds) over the stages."""
        return min(stage.tpot_s for stage in self.stages)

    def offer(self) -> "Offer":
        """What a request of this class asks for when its headers change nothing."""
        return Offer(
            slo_class=self.name,
            ttft=self.ttft,
            stages=self.stages,
            on_infeasible=self.on_infeasible,
            weight=self.weight,
            bank=self.bank,
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """
    What a request asks for before its prompt was measured: a class with header changes applied.

    It crosses from gateway to replica (`wire.py`); a slowdown stays a factor.
    """

    slo_class: str
    ttft: Ttft
    stages: tuple[Stage, ...]
    on_infeasible: OnInfeasible
    weight: float
    bank: Bank

    def promise(self, zero_load_s: Callable[[], float]) -> "Promise":
        """The promise for a prompt; `zero_load_s` is asked only for a slowdown."""
        ttft_s = self.ttft.resolve_s(zero_load_s() if self.ttft.slowdown is not None else 0.0)
        return Promise(
            slo_class=self.slo_class,
            ttft_s=ttft_s,
            stages=self.stages,
            on_infeasible=self.on_infeasible,
            weight=self.weight,
            bank=self.bank,
        )


@dataclass(frozen=True, slots=True)
class Promise:
    """What one request was promised: everything in seconds, fixed on arrival."""

    slo_class: str
    ttft_s: float
    stages: tuple[Stage, ...]
    on_infeasible: OnInfeasible = OnInfeasible.DEGRADE
    weight: float = 1.0
    bank: Bank = Bank.FIRST_TOKEN

    def tpot_s(self, stage: int) -> float:
        """TPOT (seconds) of stage number `stage`; past the last stage, the last one's."""
        stages = self.stages
        return stages[stage if stage < len(stages) else -1].tpot_s
