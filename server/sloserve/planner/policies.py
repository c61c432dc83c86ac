"""The policies by name."""

from collections.abc import Callable

from sloserve.errors import BadInput
from sloserve.planner.baselines.edf import Edf
from sloserve.planner.baselines.fcfs import Fcfs
from sloserve.planner.policy import SloservePolicy
from sloserve.planner.settings import Settings
from sloserve.planner.types import Policy

POLICIES = ("sloserve", "fcfs", "edf", "edf-drop")


def make_policy(name: str, **params: float | int | None) -> Policy:
    """
    The policy of that name; `params` are its own parameters.

    Raises BadInput for an unknown name or parameter, with what is known.
    """
    makers: dict[str, Callable[..., Policy]] = {
        "sloserve": lambda **p: SloservePolicy(Settings(**p)),
        "fcfs": Fcfs,
        "edf": Edf,
        "edf-drop": lambda **p: Edf(drop=True, **p),
    }
    maker = makers.get(name)
    if maker is None:
        raise BadInput(f"unknown policy {name!r}; one of {', '.join(POLICIES)}", field="policy")
    try:
        return maker(**params)
    except TypeError as error:
        raise BadInput(f"{name} does not take these: {params} ({error})", field="policy") from error
