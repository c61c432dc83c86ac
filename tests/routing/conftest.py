"""Builders: replicas as a router sees them, and a request that wants one."""

from collections.abc import Callable
from typing import Any

import pytest

from sloserve.routing import Ask, Replica
from sloserve.slo import Ttft
from sloserve.wire import Frontier, Report


def make_replica(
    name: str,
    *,
    room: tuple[int, int] | None = (1, 1000),
    state: str = "ready",
    age_s: float = 0.1,
    num_inflight: int = 0,
    unreported_tokens: float = 0.0,
    **report: Any,
) -> Replica:
    """A replica with 10 ms of fixed step time and 1 ms a prompt token; `room` is for `chat`."""
    fields: dict[str, Any] = {
        "zero_load_fixed_s": 0.010,
        "zero_load_per_token_s": 0.001,
        "frontier": {"chat": Frontier(*room)} if room is not None else {},
        **report,
    }
    said = Report(service="s", replica=name, state=state, **fields)
    return Replica(name, said, age_s, num_inflight, unreported_tokens)


def make_ask(**fields: Any) -> Ask:
    """A request of 100 tokens, TTFT 1 s, TPOT 50 ms."""
    given: dict[str, Any] = {
        "slo_class": "chat",
        "num_prompt_tokens": 100,
        "ttft": Ttft(target_s=1.0),
        "tpot_s": 0.05,
        **fields,
    }
    return Ask(**given)


@pytest.fixture
def a_replica() -> Callable[..., Replica]:
    """Builds a replica."""
    return make_replica


@pytest.fixture
def an_ask() -> Callable[..., Ask]:
    """Builds a request."""
    return make_ask
