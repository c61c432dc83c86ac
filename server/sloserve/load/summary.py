"""Many verdicts as one row per class: attainment, goodput, latencies, declines."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from sloserve.load.records import Ending, Judged
from sloserve.slo import Decision

CDF_POINTS = 101
ALL = "all"


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of a sample in seconds; `grid` holds 101 of them, from 0 to 100 %."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    mean: float | None = None
    grid: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Quantiles by nearest rank (an observed value, never one between)."""
        v = sorted(values)
        if not v:
            return cls()

        def at(share: float) -> float:
            return v[max(0, math.ceil(share * len(v)) - 1)]

        grid = tuple(round(at(i / (CDF_POINTS - 1)), 6) for i in range(CDF_POINTS))
        return cls(len(v), at(0.5), at(0.95), at(0.99), math.fsum(v) / len(v), grid)


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """
    One class in one window. Counts of requests, rates per second, times in seconds.

    Latencies are of answers that were served with their promise; `degraded_*` of those served
    best-effort, which count as missed.
    """

    offered: int = 0
    eligible: int = 0
    attained: int = 0  # strict
    attained_paper: int = 0
    attained_mean: int = 0
    goodput: float = 0.0  # attained requests/s
    output_rate: float = 0.0  # output tokens/s
    endings: dict[str, int] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # of what was declined or degraded
    errors: dict[str, int] = field(default_factory=dict)
    ttft: Quantiles = field(default_factory=Quantiles)
    tpot: Quantiles = field(default_factory=Quantiles)
    gap_p99: Quantiles = field(default_factory=Quantiles)  # over requests, of their p99 gap
    degraded_ttft: Quantiles = field(default_factory=Quantiles)
    ttft_target_s: float | None = None  # None: differs between requests
    tpot_target_s: float | None = None

    @property
    def attainment(self) -> float:
        """Strict; 1 when nothing was eligible."""
        return self.attained / self.eligible if self.eligible else 1.0

    @property
    def attainment_paper(self) -> float:
        """By the paper's score."""
        return self.attained_paper / self.eligible if self.eligible else 1.0

    @property
    def attainment_mean(self) -> float:
        """By mean TPOT."""
        return self.attained_mean / self.eligible if self.eligible else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it, the derived ratios included."""
        return asdict(self) | {
            "attainment": self.attainment,
            "attainment_paper": self.attainment_paper,
            "attainment_mean": self.attainment_mean,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """A class's targets in seconds, where they are the same for every request."""

    ttft_s: float | None
    tpot_s: float | None


def summarise(
    judged: Sequence[Judged], *, duration_s: float, targets: Mapping[str, Target]
) -> dict[str, ClassSummary]:
    """One summary per class that was offered or has targets, and `all`; over `duration_s`."""
    names = list(dict.fromkeys([*targets, *(j.slo_class for j in judged)]))
    rows = {
        name: _one([j for j in judged if j.slo_class == name], duration_s, targets.get(name))
        for name in names
    }
    return rows | {ALL: _one(judged, duration_s, None)}


def _one(judged: Sequence[Judged], duration_s: float, target: Target | None) -> ClassSummary:
    regular = [j.scores for j in judged if not j.degraded]
    refused = [j for j in judged if j.decision in (Decision.DECLINED, Decision.DEGRADED)]
    attained = sum(j.attained for j in judged)
    return ClassSummary(
        offered=len(judged),
        eligible=sum(j.eligible for j in judged),
        attained=attained,
        attained_paper=sum(j.attained_paper for j in judged),
        attained_mean=sum(j.attained_mean for j in judged),
        goodput=attained / duration_s,
        output_rate=sum(j.scores.num_tokens for j in judged) / duration_s,
        endings=_count(judged, lambda j: j.ending.value),
        decisions=_count(judged, lambda j: j.decision.value if j.decision else "none"),
        reasons=_count(refused, lambda j: j.reason or "unsaid"),
        errors=_count(
            [j for j in judged if j.ending in (Ending.FAILED, Ending.BAD_INPUT)],
            lambda j: j.error[:120] or "unsaid",
        ),
        ttft=Quantiles.of(s.ttft_s for s in regular if s.ttft_s is not None),
        tpot=Quantiles.of(s.mean_tpot_s for s in regular if s.mean_tpot_s is not None),
        gap_p99=Quantiles.of(s.p99_gap_s for s in regular if s.p99_gap_s is not None),
        degraded_ttft=Quantiles.of(
            j.scores.ttft_s for j in judged if j.degraded and j.scores.ttft_s is not None
        ),
        ttft_target_s=target.ttft_s if target else None,
        tpot_target_s=target.tpot_s if target else None,
    )


def _count(judged: Sequence[Judged], key: Callable[[Judged], str]) -> dict[str, int]:
    return dict(Counter(map(key, judged)).most_common())


def class_summary_from_dict(raw: Mapping[str, Any]) -> ClassSummary:
    """The inverse of `ClassSummary.to_dict`."""
    values = {k: v for k, v in raw.items() if not k.startswith("attainment")}
    for name in ("ttft", "tpot", "gap_p99", "degraded_ttft"):
        values[name] = Quantiles(**(values[name] | {"grid": tuple(values[name]["grid"])}))
    return ClassSummary(**values)
