"""What is simulated beside the load: machine, policy, cluster."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from sloserve.perf import StepModel
from sloserve.simulate.acceptance import AcceptanceProfile
from sloserve.simulate.truth import TruthSpec


class Lengths(StrEnum):
    """What the planner knows of output lengths."""

    LIMIT = "limit"  # at most what the client allows: the true length, as load clients ask for it
    HIDDEN = "hidden"  # at most what the model allows; the class's law is all there is
    ORACLE = "oracle"  # the truth


@dataclass(frozen=True, slots=True)
class SimSettings:
    """One simulated service. Times in seconds."""

    policy: str
    model: StepModel
    """The step model that policies see; the truth is this one, bent by `truth`."""
    policy_params: Mapping[str, float | int] = field(default_factory=dict)
    truth: TruthSpec = field(default_factory=TruthSpec)
    lengths: Lengths = Lengths.LIMIT
    replicas: int = 1
    router: str = "sloserve"
    max_hops: int | None = None
    num_blocks: int = 8192
    block_size: int = 16
    max_running: int = 256
    max_batch_tokens: int = 8192
    max_model_len: int = 2048
    start_margin_s: float = 0.0
    """Margin of the model while few steps were seen: its own p95 error."""
    plan_s: float = 0.0
    overlap: bool = False
    """The next step is planned while one runs, arrivals at once; as on a GPU."""
    acceptance: AcceptanceProfile | None = None
    """How often drafts are right; None: no speculation."""
    fixed_drafts: int | None = None
    """Drafts for every decode of every step; None: as many as the planner decides."""
    max_drafts: int = 8
    """Of one request in one step, where the planner decides."""
    draft_model: bool = False
    """A draft model writes them: the step model's k2 for each of the longest. Otherwise n-grams."""
    propose_s: float = 0.0
    """What each request that is asked for n-gram drafts costs between two steps."""
    way_in_s: float = 0.0
    way_out_s: float = 0.0
    planned_way_out_s: float | None = None
    """What the planner subtracts for the way out; None: the true one."""
    poll_s: float = 0.2
    thinking_share: float = 0.7
    """Share of an answer in the first of two stages (a reasoning service's mean)."""
    drain_s: float = 600.0
    seed: int = 0

    @property
    def strict(self) -> bool:
        """
        Whether no token of an admitted request may be late: exact model, known lengths.

        Then it is asserted inside the run.
        """
        return (
            self.policy == "sloserve"
            and self.truth.exact
            and self.lengths is Lengths.ORACLE
            and self.plan_s == 0
            and (self.acceptance is None or self.propose_s == 0)
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it."""
        name = None if self.acceptance is None else self.acceptance.name
        plain = asdict(replace(self, acceptance=None))
        return plain | {"acceptance": name, "strict": self.strict}
