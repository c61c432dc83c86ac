"""The resolved spec says the same thing as the manifest it came from."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sloserve.slo import (
    Bank,
    OnInfeasible,
    ServiceSpec,
    SloClass,
    Stage,
    Ttft,
    parse_service,
    service_to_dict,
)

Manifest = dict[str, Any]

NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
SECONDS = st.integers(1, 3_600_000).map(lambda ms: ms / 1000)
NUMBERS = st.integers(1_000_000, 900_000_000).map(lambda millionths: millionths / 1_000_000)
SHARES = st.integers(1_000_000, 99_999_000).map(lambda ppm: ppm / 100_000_000)


@st.composite
def stages(draw: st.DrawFn) -> tuple[Stage, ...]:
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    marked = draw(st.booleans())
    marks = [draw(st.text(min_size=1, max_size=64)) if marked else None for _ in names]
    marks[-1] = None
    return tuple(Stage(name, draw(SECONDS), mark) for name, mark in zip(names, marks, strict=True))


@st.composite
def classes(draw: st.DrawFn, name: str) -> SloClass:
    ttft = draw(
        st.one_of(
            SECONDS.map(lambda s: Ttft(target_s=s)),
            st.tuples(NUMBERS, SECONDS).map(lambda t: Ttft(slowdown=t[0], floor_s=t[1])),
        )
    )
    parts = draw(stages())
    tightest = draw(st.booleans())
    return SloClass(
        name=name,
        ttft=ttft,
        stages=parts,
        objective=draw(SHARES),
        on_infeasible=draw(st.sampled_from(OnInfeasible)),
        weight=draw(NUMBERS),
        tightest_ttft_s=ttft.target_s if tightest else None,
        tightest_tpot_s=min(stage.tpot_s for stage in parts) if tightest else None,
        bank=draw(st.sampled_from(Bank)),
    )


@st.composite
def services(draw: st.DrawFn, base: ServiceSpec) -> ServiceSpec:
    names = draw(st.lists(NAMES, min_size=1, max_size=16, unique=True))
    return ServiceSpec(
        name=draw(NAMES),
        model=base.model,
        engine=base.engine,
        classes=tuple(draw(classes(name)) for name in names),
        default_class=draw(st.sampled_from(names)),
        replicas=draw(st.integers(0, 1000)),
        gateway=base.gateway,
        drain_timeout_s=draw(SECONDS),
        autoscaling=base.autoscaling,
        observability=base.observability,
        generation=draw(st.integers(0, 10**9)),
    )


def test_a_complete_manifest_survives_being_resolved(complete: Manifest) -> None:
    spec = parse_service(complete)
    assert parse_service(service_to_dict(spec)) == spec


def test_a_minimal_manifest_survives_being_resolved(minimal: Manifest) -> None:
    spec = parse_service(minimal)
    assert parse_service(service_to_dict(spec)) == spec


def test_every_service_survives_being_resolved_and_written_as_json(complete: Manifest) -> None:
    base = parse_service(complete)

    @given(services(base))
    def survives(spec: ServiceSpec) -> None:
        assert parse_service(json.loads(json.dumps(service_to_dict(spec)))) == spec

    survives()
