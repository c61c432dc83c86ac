"""What one process keeps about one service between two looks."""

from dataclasses import dataclass, field

from sloserve_operator.api import Obj, Ref
from sloserve_operator.observed import Claim, Memory

NEVER_S = float("-inf")
LOOK_AGAIN_S = 60.0
"""After this time what was refused or missing is tried or looked at again."""
FOREIGN_S = 10.0
"""And what belongs to somebody else after this one: no watch of ours tells that it is gone."""
CLAIM_S = 600.0
"""And a claim that is as it should be after this one: its access modes can't change."""


@dataclass(slots=True)
class Known:
    """Losing it costs a few requests and nothing else."""

    memory: Memory = field(default_factory=Memory)
    status_s: float = NEVER_S
    """When status was written last."""
    counted_s: float = NEVER_S
    """And when with what gateways counted since."""
    generation: int = 0
    foreign: dict[Ref, float] = field(default_factory=dict)
    refused: dict[Ref, tuple[float, str]] = field(default_factory=dict)
    accepted: dict[Ref, tuple[str, str, int]] = field(default_factory=dict)
    """Uid, hash and generation of a child as the API server took it, in its own spelling."""
    seen: dict[Ref, tuple[str, str]] = field(default_factory=dict)
    """The hash of a child as wanted, and the version in which the cluster's was found so."""
    claims: dict[str, tuple[float, Claim]] = field(default_factory=dict)
    notes: tuple[Obj, ...] = ()
    notes_s: float = NEVER_S

    def expire(self, now_s: float) -> None:
        """What is old enough is tried again."""
        self.foreign = {ref: at for ref, at in self.foreign.items() if now_s - at < FOREIGN_S}
        self.refused = {
            ref: told for ref, told in self.refused.items() if now_s - told[0] < LOOK_AGAIN_S
        }
        self.claims = {
            name: (at_s, claim)
            for name, (at_s, claim) in self.claims.items()
            if now_s - at_s < (CLAIM_S if claim.exists and claim.shareable else LOOK_AGAIN_S)
        }
