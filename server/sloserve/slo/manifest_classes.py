"""`sloClasses` of a manifest: from YAML's values to promises."""

from decimal import Decimal

from sloserve.errors import BadInput
from sloserve.slo.classes import Bank, OnInfeasible, SloClass, Stage, Ttft
from sloserve.slo.duration import format_duration
from sloserve.slo.fields import Fields, unique

MAX_CLASSES = 16
MAX_STAGES = 8
LEAST_S = 0.001
MOST_TTFT_S = 86400.0
MOST_TPOT_S = 3600.0


def parse_classes(spec: Fields) -> tuple[SloClass, ...]:
    """The classes under `spec`, 1 to 16, names unique."""
    spec.require("sloClasses", "[{name: chat, ttft: {slowdown: 5}, tpot: 100ms}]")
    entries = spec.items(
        "sloClasses",
        "name",
        "ttft",
        "tpot",
        "stages",
        "objectivePercent",
        "onInfeasible",
        "weight",
        "bank",
        "tightest",
        least=1,
        most=MAX_CLASSES,
    )
    classes = tuple(_parse_class(entry) for entry in entries)
    unique([c.name for c in classes], spec.at("sloClasses"), "classes")
    return classes


def parse_default_class(spec: Fields, classes: tuple[SloClass, ...]) -> str:
    """`defaultClass`, which must exist; the first class when it is not given."""
    names = [c.name for c in classes]
    chosen = spec.text("defaultClass", names[0])
    if chosen not in names:
        raise BadInput(
            f"{chosen!r} is not a class; sloClasses has {', '.join(names)}",
            field=spec.at("defaultClass"),
        )
    return chosen


def _parse_class(entry: Fields) -> SloClass:
    entry.require("name", "chat")
    ttft, stages = _parse_ttft(entry), _parse_stages(entry)
    percent = entry.decimal("objectivePercent", Decimal(99), least="1", most="99.999")
    tightest_ttft_s, tightest_tpot_s = _parse_tightest(entry, ttft, stages)
    return SloClass(
        name=entry.name("name", ""),
        ttft=ttft,
        stages=stages,
        objective=float(percent / 100),
        on_infeasible=entry.enum("onInfeasible", OnInfeasible.DEGRADE),
        weight=float(entry.decimal("weight", Decimal(1), least="0.001", most="1000")),
        tightest_ttft_s=tightest_ttft_s,
        tightest_tpot_s=tightest_tpot_s,
        bank=entry.enum("bank", Bank.FIRST_TOKEN),
    )


def _parse_ttft(entry: Fields) -> Ttft:
    entry.require("ttft", "{target: 500ms}")
    ttft = entry.inner("ttft", "target", "slowdown", "floor")
    ttft.exactly_one("target", "slowdown")
    if ttft.has("target"):
        if ttft.has("floor"):
            raise BadInput(
                "belongs to slowdown; a target has none: remove it", field=ttft.at("floor")
            )
        return Ttft(target_s=ttft.duration("target", 0.0, least_s=LEAST_S, most_s=MOST_TTFT_S))
    return Ttft(
        slowdown=float(ttft.decimal("slowdown", Decimal(1), least="1", most="10000")),
        floor_s=ttft.duration("floor", 0.0, least_s=0.0, most_s=MOST_TTFT_S),
    )


def _parse_stages(entry: Fields) -> tuple[Stage, ...]:
    entry.exactly_one("tpot", "stages")
    if entry.has("tpot"):
        return (Stage("decode", _tpot_s(entry)),)
    nodes = entry.items("stages", "name", "tpot", "until", least=1, most=MAX_STAGES)
    stages = []
    for node in nodes:
        node.require("name", "thinking")
        node.require("tpot", "50ms")
        until = node.text("until", None, longest=64)
        stages.append(Stage(node.name("name", ""), _tpot_s(node), until))
    path = entry.at("stages")
    unique([stage.name for stage in stages], path, "stages")
    if stages[-1].until is not None:
        raise BadInput(
            "the last stage ends with the answer: remove it, or add a stage after it",
            field=f"{path}[{len(stages) - 1}].until",
        )
    marked = [stage.until is not None for stage in stages[:-1]]
    if any(marked) and not all(marked):
        raise BadInput(
            "is missing; either every stage but the last ends at a marker, or none does "
            "(then the client names the stage)",
            field=f"{path}[{marked.index(False)}].until",
        )
    return tuple(stages)


def _tpot_s(node: Fields) -> float:
    return node.duration("tpot", 0.0, least_s=LEAST_S, most_s=MOST_TPOT_S)


def _parse_tightest(
    entry: Fields, ttft: Ttft, stages: tuple[Stage, ...]
) -> tuple[float | None, float | None]:
    node = entry.inner("tightest", "ttft", "tpot")
    ttft_s = node.duration("ttft", None, least_s=LEAST_S, most_s=MOST_TTFT_S)
    tpot_s = node.duration("tpot", None, least_s=LEAST_S, most_s=MOST_TPOT_S)
    if ttft_s is not None and ttft.target_s is not None:
        _not_looser(node.at("ttft"), ttft_s, ttft.target_s, "ttft.target")
    if tpot_s is not None:
        least_s = min(stage.tpot_s for stage in stages)
        _not_looser(node.at("tpot"), tpot_s, least_s, "tightest tpot")
    return ttft_s, tpot_s


def _not_looser(path: str, seen_s: float, own_s: float, what: str) -> None:
    if seen_s > own_s:
        raise BadInput(
            f"is {format_duration(seen_s)}; must be at most {format_duration(own_s)}, "
            f"the class's own {what}: it says how far headers may tighten",
            field=path,
        )
