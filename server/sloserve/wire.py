"""
What crosses a process: header names, the promise as JSON, a replica's report, a class's demand.

The only place that knows these names. Both sides parse with the same code.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sloserve.errors import BadInput
from sloserve.slo import Bank, Offer, OnInfeasible, Stage, Ttft

# Between client and gateway (a replica alone understands them as well).
SLO_CLASS = "x-slo-class"
SLO_CLASS_ALIASES = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
SLO_TTFT_MS = "x-slo-ttft-ms"
SLO_TPOT_MS = "x-slo-tpot-ms"
SLO_TTFT_MS_ALIASES = ("x-llm-d-slo-ttft-ms",)
SLO_TPOT_MS_ALIASES = ("x-llm-d-slo-tpot-ms",)
SLO_STAGE = "x-slo-stage"
SLO_DECISION = "x-slo-decision"
SLO_REASON = "x-slo-reason"
SLO_REPLICA = "x-slo-replica"
SLO_HOPS = "x-slo-hops"
SLO_NOTE = "x-slo-note"  # what a header asked for and did not get (a clamped target)
SESSION_ID = "x-session-id"
REQUEST_ID = "x-request-id"

# Between gateway and replica; dropped when a client sends them to a gateway.
INTERNAL_PREFIX = "x-sloserve-"
AGE_MS = "x-sloserve-age-ms"
PROMISE = "x-sloserve-promise"
LAST_HOP = "x-sloserve-last-hop"
ANNOTATE = "x-sloserve-annotate"
PROMPT_TOKENS = "x-sloserve-prompt-tokens"
STAGE_TOKENS = "x-sloserve-stage-tokens"  # answers not streamed: "40,12;38,9", stages, then choices
REPORT = "x-sloserve-report"


def offer_to_json(offer: Offer) -> str:
    """Compact JSON of an offer, one line, for the `x-sloserve-promise` header."""
    ttft: dict[str, float] = (
        {"target": offer.ttft.target_s}
        if offer.ttft.target_s is not None
        else {"slowdown": offer.ttft.slowdown or 0.0, "floor": offer.ttft.floor_s}
    )
    stages = [[s.name, s.tpot_s, s.until] for s in offer.stages]
    return json.dumps(
        {
            "class": offer.slo_class,
            "ttft": ttft,
            "stages": stages,
            "onInfeasible": offer.on_infeasible.value,
            "weight": offer.weight,
            "bank": offer.bank.value,
        },
        separators=(",", ":"),
    )


def offer_from_json(text: str) -> Offer:
    """The offer in an `x-sloserve-promise` header. Raises BadInput on anything else."""
    try:
        raw: dict[str, Any] = json.loads(text)
        ttft = raw["ttft"]
        return Offer(
            slo_class=str(raw["class"]),
            ttft=Ttft(
                target_s=float(ttft["target"]) if "target" in ttft else None,
                slowdown=float(ttft["slowdown"]) if "slowdown" in ttft else None,
                floor_s=float(ttft.get("floor", 0.0)),
            ),
            stages=tuple(Stage(str(n), float(t), u) for n, t, u in raw["stages"]),
            on_infeasible=OnInfeasible(raw["onInfeasible"]),
            weight=float(raw["weight"]),
            bank=Bank(raw["bank"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"not a promise: {error!r} in {text[:200]!r}", field=PROMISE) from error


def annotation(*, num_tokens: int, stage: int) -> str:
    """The SSE comment line that precedes an event (`x-sloserve-annotate: 1`)."""
    return f": n={num_tokens} stage={stage}\n"


def parse_annotation(line: bytes) -> tuple[int, int] | None:
    """(tokens, stage) of an annotation line; None for any other comment."""
    if not line.startswith(b": n="):
        return None
    try:
        count, _, stage = line[4:].strip().partition(b" stage=")
        return int(count), int(stage)
    except ValueError:
        return None


_ANNOTATION = re.compile(rb"^: n=(\d{1,6}) stage=(\d{1,3})\n", re.MULTILINE)


def split_annotations(events: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """Whole events without their annotation lines, and the (tokens, stage) those told."""
    first = _ANNOTATION.match(events)
    if first is not None:  # nearly always all annotations are alike: no need to look at each
        rest = events[first.end() :]
        left = rest.replace(b"\n" + first[0], b"\n")
        if b"\n: n=" not in left and not left.startswith(b": n="):
            num_alike = 1 + (len(rest) - len(left)) // len(first[0])
            return left, [(int(first[1]), int(first[2]))] * num_alike
    parts = _ANNOTATION.split(events)  # text, then count, stage, text for every annotation
    if len(parts) == 1:
        return events, []
    marks = [(int(n), int(stage)) for n, stage in zip(parts[1::3], parts[2::3], strict=True)]
    return b"".join(parts[::3]), marks


def stage_tokens(choices: Sequence[Sequence[int]]) -> str:
    """The `x-sloserve-stage-tokens` header: output tokens per stage, for every choice."""
    return ";".join(",".join(str(count) for count in stages) for stages in choices)


def parse_stage_tokens(text: str) -> list[list[int]] | None:
    """Output tokens per choice and stage; None when it says nothing of the kind."""
    try:
        return [[int(count) for count in stages.split(",")] for stages in text.split(";")]
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Frontier:
    """The interval of prompt lengths (tokens) that would be admitted now; empty when max < min."""

    min_tokens: int
    max_tokens: int

    def contains(self, num_tokens: int) -> bool:
        """Whether a prompt of this length would be admitted."""
        return self.min_tokens <= num_tokens <= self.max_tokens


@dataclass(frozen=True, slots=True)
class Report:
    """
    How a replica feels: what routing reads, in Prometheus text or piggy-backed on an answer.

    `state` is "loading", "ready" or "draining". Times in seconds, sizes in tokens and blocks.
    """

    service: str
    replica: str
    state: str
    frontier: dict[str, Frontier] = field(default_factory=dict)
    earliest_first_token_s: dict[str, float] = field(default_factory=dict)
    tightest_tpot_s: float = 0.0  # of the promised requests that run; 0: none runs
    token_supply_per_s: float = 0.0
    free_blocks: int = 0
    total_blocks: int = 0
    num_running: int = 0
    num_waiting: int = 0
    waiting_prefill_tokens: int = 0
    zero_load_fixed_s: float = 0.0
    zero_load_per_token_s: float = 0.0
    config_generation: int = 0


@dataclass(slots=True)
class Demand:
    """What one class asked for over some time, as gateways saw it. Counts up."""

    num_arrived: int = 0
    prompt_tokens: int = 0
    """Of all that arrived, refused ones included, as estimated on arrival."""
    num_answered: int = 0
    output_tokens: int = 0
    """Of those answered, in full or in part."""
    num_declined: int = 0
    """Ended without an answer for want of capacity."""
    num_degraded: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why requests were declined or degraded."""

    def add(self, other: "Demand") -> None:
        """Count another one's in."""
        self.num_arrived += other.num_arrived
        self.prompt_tokens += other.prompt_tokens
        self.num_answered += other.num_answered
        self.output_tokens += other.output_tokens
        self.num_declined += other.num_declined
        self.num_degraded += other.num_degraded
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count


def demand_to_json(demand: Demand) -> dict[str, Any]:
    """A demand as JSON values."""
    return {
        "arrived": demand.num_arrived,
        "promptTokens": demand.prompt_tokens,
        "answered": demand.num_answered,
        "outputTokens": demand.output_tokens,
        "declined": demand.num_declined,
        "degraded": demand.num_degraded,
        "reasons": dict(demand.reasons),
    }


def demand_from_json(data: Mapping[str, Any]) -> Demand:
    """The demand in such JSON; what is missing is 0. What is no number raises as `int` does."""
    return Demand(
        num_arrived=int(data.get("arrived", 0)),
        prompt_tokens=int(data.get("promptTokens", 0)),
        num_answered=int(data.get("answered", 0)),
        output_tokens=int(data.get("outputTokens", 0)),
        num_declined=int(data.get("declined", 0)),
        num_degraded=int(data.get("degraded", 0)),
        reasons={str(k): int(v) for k, v in (data.get("reasons") or {}).items()},
    )
