"""What the headers of a request say: its promise, its age, who asks."""

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from sloserve.errors import BadInput
from sloserve.http.offers import ResolvedOffer, resolve_offer
from sloserve.slo import Offer
from sloserve.slo.service import ServiceSpec
from sloserve.wire import (
    AGE_MS,
    ANNOTATE,
    LAST_HOP,
    PROMISE,
    REQUEST_ID,
    offer_from_json,
)

MAX_AGE_S = 86_400.0
MAX_ID = 128


@dataclass(frozen=True, slots=True)
class Ask:
    """The headers' side of one request."""

    request_id: str
    arrival_s: float  # on the replica's clock; in the past by the age that a gateway told
    offer: Offer
    notes: tuple[str, ...]
    last_hop: bool
    annotate: bool
    through_gateway: bool


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own id when it is a short printable one, else a new one."""
    asked = headers.get(REQUEST_ID, "")
    if 0 < len(asked) <= MAX_ID and asked.isascii() and asked.isprintable():
        return asked
    return uuid.uuid4().hex


def read_ask(spec: ServiceSpec, headers: Mapping[str, str], *, id_: str, now_s: float) -> Ask:
    """
    The ask of a request that was read at `now_s`. Raises BadInput.

    Without an age it came straight from a client: age 0, last hop. The internal headers are
    believed only beside an age.
    """
    age_text = headers.get(AGE_MS)
    promise = headers.get(PROMISE) if age_text is not None else None
    if promise is not None:
        resolved = ResolvedOffer(_offer(promise))
    else:
        resolved = resolve_offer(spec, headers)
    return Ask(
        request_id=id_,
        arrival_s=now_s - _age_s(age_text),
        offer=resolved.offer,
        notes=resolved.notes,
        last_hop=age_text is None or headers.get(LAST_HOP) == "1",
        annotate=headers.get(ANNOTATE) == "1",
        through_gateway=age_text is not None,
    )


def _age_s(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        age_s = float(text) / 1e3
    except ValueError:
        age_s = math.nan
    if not 0 <= age_s <= MAX_AGE_S:
        raise BadInput(
            f"got {text[:40]!r}, allowed: milliseconds from 0 to {MAX_AGE_S * 1e3:.0f}",
            field=AGE_MS,
        )
    return age_s


def _offer(text: str) -> Offer:
    offer = offer_from_json(text)
    ttft = offer.ttft
    numbers = [ttft.target_s if ttft.target_s is not None else ttft.slowdown or math.nan]
    numbers += [stage.tpot_s for stage in offer.stages] or [math.nan]
    if not all(math.isfinite(n) and n > 0 for n in (*numbers, offer.weight)):
        raise BadInput("targets and weight must be above 0", field=PROMISE)
    return offer
