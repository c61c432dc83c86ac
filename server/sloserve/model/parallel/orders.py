"""What rank 0 tells the other ranks outside of steps, and what they answer."""

import pickle
from dataclasses import dataclass
from pathlib import Path

from sloserve.slo.service import EngineSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class Join:
    """Meet the other ranks at the file `store`."""

    store: str
    device: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """Load this rank's part of the model in `path`, then take steps."""

    path: Path
    model: ModelSpec
    engine: EngineSpec


@dataclass(frozen=True, slots=True)
class Step:
    """Compute the step of this layout (`wire`)."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """Drop the model; another may be loaded."""


@dataclass(frozen=True, slots=True)
class Leave:
    """End the process."""


Order = Join | Load | Step | Release | Leave

_STEP, _OTHER = b"s", b"o"


def as_bytes(order: Order) -> bytes:
    """An order on its way; steps, the only frequent ones, are not pickled."""
    if isinstance(order, Step):
        return _STEP + order.body
    return _OTHER + pickle.dumps(order)


def from_bytes(told: bytes) -> Order:
    """The order that was sent by the parent process, over a connection that nobody else has."""
    if told[:1] == _STEP:
        return Step(told[1:])
    order: Order = pickle.loads(told[1:])
    return order


@dataclass(frozen=True, slots=True)
class Done:
    """Up, or done with a Join or a Load."""


@dataclass(frozen=True, slots=True)
class NotDone:
    """It failed, and the process ends; `bad_input`: by what was asked for."""

    message: str
    bad_input: bool
    field: str | None = None


Answer = Done | NotDone
