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
from sloserve.slo.duration import format_duration, parse_duration, parse_size
from sloserve.slo.manifest import API_VERSION, KIND, parse_service
from sloserve.slo.resolved import service_to_dict
from sloserve.slo.scores import NOTHING_CAME, Emission, Scores, score, score_whole
from sloserve.slo.service import (
    EngineSpec,
    GatewaySpec,
    LoraSpec,
    ModelSpec,
    ServiceSpec,
    SpeculationSpec,
)

__all__ = [
    "API_VERSION",
    "KIND",
    "NOTHING_CAME",
    "Bank",
    "Decision",
    "Emission",
    "EngineSpec",
    "GatewaySpec",
    "LoraSpec",
    "ModelSpec",
    "Offer",
    "OnInfeasible",
    "Promise",
    "Scores",
    "ServiceSpec",
    "SloClass",
    "SpeculationSpec",
    "Stage",
    "TokenDeadlines",
    "Ttft",
    "answer_due_s",
    "format_duration",
    "parse_duration",
    "parse_service",
    "parse_size",
    "score",
    "score_whole",
    "service_to_dict",
]
