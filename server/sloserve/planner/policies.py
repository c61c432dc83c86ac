"""The policies by name."""

from collections.abc import Callable

from sloserve.errors import BadInput
from sloserve.planner.baselines.edf import Edf
from sloserve.planner.baselines.fcfs import Fcfs
from sloserve.planner.policy import SloservePolicy
from sloserve.planner.settings import Settings
from sloserve.planner.types import Policy

POLICIES = ("sloserve", "fcfs", "edf", "edf-drop")


def parse_policy(text: str) -> tuple[str, dict[str, float | int]]:
    """
    A policy and its parameters as they are typed: `fcfs`, `edf-drop:max_batch_tokens=256,safety=1`.

    Raises BadInput for an unknown name, and for what is not key=number.
    """
    name, _, rest = text.partition(":")
    if name not in POLICIES:
        raise BadInput(f"unknown policy {name!r}; one of {', '.join(POLICIES)}", field="policy")
    params: dict[str, float | int] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            params[key] = float(value) if "." in value else int(value)
        except ValueError:
            raise BadInput(f"{part!r} in {text!r} is not key=number", field="policy") from None
    return name, params


def make_policy(name: str, **params: float | int | None) -> Policy:
    """
    The policy of that name; `params` are its own parameters, which may also stand in the name
    (`parse_policy`).

    Raises BadInput for an unknown name or parameter, with what is known.
    """
    makers: dict[str, Callable[..., Policy]] = {
        "sloserve": lambda **p: SloservePolicy(Settings(**p)),
        "fcfs": Fcfs,
        "edf": Edf,
        "edf-drop": lambda **p: Edf(drop=True, **p),
    }
    name, given = parse_policy(name)
    params = {**given, **params}
    try:
        return makers[name](**params)
    except TypeError as error:
        raise BadInput(f"{name} does not take these: {params} ({error})", field="policy") from error
