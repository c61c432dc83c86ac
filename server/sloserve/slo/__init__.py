"""What was promised, when each token is due, and whether it was kept."""

from sloserve.slo.classes import (
    Bank,
    Decision,
    Offer,
    OnInfeasible,
    Promise,
    SloClass,
    Stage,
    Ttft,
)
from sloserve.slo.deadlines import TokenDeadlines, answer_due_s
from sloserve.slo.scores import NOTHING_CAME, Emission, Scores, score, score_whole

__all__ = [
    "NOTHING_CAME",
    "Bank",
    "Decision",
    "Emission",
    "Offer",
    "OnInfeasible",
    "Promise",
    "Scores",
    "SloClass",
    "Stage",
    "TokenDeadlines",
    "Ttft",
    "answer_due_s",
    "score",
    "score_whole",
]
