"""
What a request asks for: its class, with the changes its headers make.

Loosening is free. Tightening goes down to the class's `tightest` (default: not at all), and is
clamped there and said so. Gateway and replica resolve with this same code.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sloserve.errors import BadInput
from sloserve.slo import Offer, SloClass, Stage, Ttft
from sloserve.slo.service import ServiceSpec
from sloserve.wire import (
    SLO_CLASS,
    SLO_CLASS_ALIASES,
    SLO_STAGE,
    SLO_TPOT_MS,
    SLO_TPOT_MS_ALIASES,
    SLO_TTFT_MS,
    SLO_TTFT_MS_ALIASES,
)


@dataclass(frozen=True, slots=True)
class ResolvedOffer:
    """An offer, and what was not granted as asked (for `x-slo-note`)."""

    offer: Offer
    notes: tuple[str, ...] = ()


def resolve_offer(
    spec: ServiceSpec, headers: Mapping[str, str], default_class: str | None = None
) -> ResolvedOffer:
    """
    The offer of a request with these headers (lower-case or case-insensitive keys).

    The class: its header, else `default_class` (what the API key says), else the service's.
    Raises BadInput for an unknown class, an unknown stage and a target that is not a number;
    targets of zero or less count as absent.
    """
    slo_class = _slo_class(spec.classes, headers, default_class or spec.default_class)
    notes: list[str] = []
    ttft = slo_class.ttft
    if (asked_s := _target_s(headers, SLO_TTFT_MS, SLO_TTFT_MS_ALIASES)) is not None:
        ttft = _ttft(slo_class, asked_s, notes)
    stages = _stages(slo_class, headers.get(SLO_STAGE), notes)
    if (asked_s := _target_s(headers, SLO_TPOT_MS, SLO_TPOT_MS_ALIASES)) is not None:
        stages = tuple(_stage(slo_class, stage, asked_s, notes) for stage in stages)
    offer = Offer(
        slo_class=slo_class.name,
        ttft=ttft,
        stages=stages,
        on_infeasible=slo_class.on_infeasible,
        weight=slo_class.weight,
        bank=slo_class.bank,
    )
    return ResolvedOffer(offer, tuple(notes))


def _slo_class(classes: Sequence[SloClass], headers: Mapping[str, str], default: str) -> SloClass:
    asked = next((headers[h] for h in (SLO_CLASS, *SLO_CLASS_ALIASES) if headers.get(h)), default)
    for slo_class in classes:
        if slo_class.name == asked:
            return slo_class
    known = ", ".join(slo_class.name for slo_class in classes)
    raise BadInput(f"unknown SLO class {asked[:80]!r}, known: {known}", field=SLO_CLASS)


def _target_s(headers: Mapping[str, str], name: str, aliases: Sequence[str]) -> float | None:
    for header in (name, *aliases):
        text = headers.get(header)
        if text is None or not text.strip():
            continue
        try:
            value_ms = float(text)
        except ValueError:
            value_ms = math.nan
        if not math.isfinite(value_ms):
            raise BadInput(f"got {text[:80]!r}, allowed: milliseconds as a number", field=header)
        return value_ms / 1e3 if value_ms > 0 else None
    return None


def _ttft(slo_class: SloClass, asked_s: float, notes: list[str]) -> Ttft:
    own, tightest_s = slo_class.ttft, slo_class.tightest_ttft_s
    if own.target_s is None and tightest_s is None:
        # Own target known only with the prompt: the slower of it and what was asked.
        return replace(own, floor_s=max(own.floor_s, asked_s))
    least_s = own.target_s if tightest_s is None else tightest_s
    assert least_s is not None
    if own.target_s is not None:
        least_s = min(least_s, own.target_s)
    if asked_s < least_s:
        notes.append(_clamped("ttft", asked_s, least_s))
    return Ttft(target_s=max(asked_s, least_s))


def _stage(slo_class: SloClass, stage: Stage, asked_s: float, notes: list[str]) -> Stage:
    tightest_s = slo_class.tightest_tpot_s
    least_s = stage.tpot_s if tightest_s is None else min(tightest_s, stage.tpot_s)
    if asked_s < least_s:
        notes.append(_clamped(f"tpot of {stage.name}", asked_s, least_s))
    return replace(stage, tpot_s=max(asked_s, least_s))


def _stages(slo_class: SloClass, asked: str | None, notes: list[str]) -> tuple[Stage, ...]:
    """All stages; of those the client names, the one it named (else the first)."""
    stages = slo_class.stages
    named_by_client = len(stages) > 1 and all(stage.until is None for stage in stages)
    if not named_by_client:
        if asked and asked not in {stage.name for stage in stages}:
            notes.append(f"stage ignored: {slo_class.name} has no stages that a client names")
        return stages
    if not asked:
        return stages[:1]
    for stage in stages:
        if stage.name == asked:
            return (stage,)
    known = ", ".join(stage.name for stage in stages)
    raise BadInput(
        f"unknown stage {asked[:80]!r} of class {slo_class.name}, known: {known}", field=SLO_STAGE
    )


def _clamped(what: str, asked_s: float, least_s: float) -> str:
    return f"{what} clamped from {asked_s * 1e3:g} ms to {least_s * 1e3:g} ms"
