"""CRD and parser say the same: fields, defaults, and a yes or no to every odd value."""

import re
from collections.abc import Callable, Iterator
from typing import Any

Way = tuple[str | int, ...]
Leaves = Callable[[Any], Iterator[Way]]
Dotted = Callable[[Way], str]
Changed = Callable[[Any, Way, Any], Any]
Says = Callable[[Any], str]

IN_WORDS = {
    "spec.model.servedName",
    "spec.model.cache",
    "spec.model.maxModelLen",
    "spec.model.chatTemplate",
    "spec.model.toolParser",
    "spec.engine.kvCache.size",
    "spec.engine.threads",
    "spec.sloClasses[].ttft.floor",
    "spec.sloClasses[].tightest",
    "spec.defaultClass",
    "spec.autoscaling",
    "spec.gateway.auth",
    "spec.gateway.tls",
    "spec.gateway.maxHops",
}
"""Defaults that follow from something else; the description tells them."""


def declared(node: Any, path: str = "spec") -> Iterator[tuple[str, Any]]:
    """Every field that a schema node declares, below it."""
    for key, inner in node.get("properties", {}).items():
        here = f"{path}.{key}"
        yield here, inner
        yield from declared(inner, here)
        yield from declared(inner.get("items", {}), f"{here}[]")


def spec_of(crd: Any) -> Any:
    """The schema of the spec."""
    return crd.schema["properties"]["spec"]


def test_every_field_of_the_crd_is_in_a_sample_that_the_parser_accepts(
    valid: list[Any], crd: Any, leaves: Leaves, dotted: Dotted, parser_says: Says
) -> None:
    assert {s.name: parser_says(s.manifest) for s in valid} == {s.name: "" for s in valid}
    used = {dotted(way) for s in valid for way in leaves(s.manifest)}
    assert {name for name, _ in declared(spec_of(crd))} - used == set()


def test_the_parser_knows_no_field_that_the_crd_lacks(
    valid: list[Any], crd: Any, leaves: Leaves, dotted: Dotted, changed: Changed, parser_says: Says
) -> None:
    objects = {"spec": spec_of(crd)} | {
        name if "properties" in node else f"{name}[]": node.get("items", node)
        for name, node in declared(spec_of(crd))
        if "properties" in node.get("items", node)
    }
    compared = {}
    for sample in valid:
        for way in leaves(sample.manifest):
            name = dotted(way)
            if name not in objects or name in compared:
                continue
            said = parser_says(changed(sample.manifest, (*way, "QQQQ"), 1))
            known = re.search(r"QQQQ: is not a known field; known here: (.*)$", said)
            if known:  # not where the sample has null
                compared[name] = set(known[1].split(", "))
    assert compared == {name: set(node["properties"]) for name, node in objects.items()}


def test_defaults_are_those_of_the_parser(
    valid: list[Any],
    crd: Any,
    leaves: Leaves,
    dotted: Dotted,
    changed: Changed,
    parser_says: Says,
    parsed: Callable[[Any], Any],
) -> None:
    defaults = {n: node["default"] for n, node in declared(spec_of(crd)) if "default" in node}
    compared = set()
    for sample in valid:
        for way in leaves(sample.manifest):
            name = dotted(way)
            absent = changed(sample.manifest, way, ...)
            if name not in defaults or parser_says(absent):  # the sample needs the field
                continue
            given = changed(sample.manifest, way, defaults[name])
            assert parsed(absent) == parsed(given), name
            compared.add(name)
    assert compared == set(defaults)


def test_a_default_that_follows_from_something_else_is_told_in_words(crd: Any) -> None:
    fields = dict(declared(spec_of(crd)))
    told = {name for name, node in fields.items() if "Default:" in node["description"]}
    assert told >= IN_WORDS
    assert [name for name in IN_WORDS if "default" in fields[name]] == []


def test_parser_and_crd_give_the_same_verdict_on_every_odd_value_of_every_field(
    odd: list[tuple[str, Any, Any]], crd: Any, parser_says: Says
) -> None:
    disagreed = []
    for name, value, manifest in odd:
        refused, wrong = parser_says(manifest), crd.refusals(manifest)
        if bool(refused) != bool(wrong):
            disagreed.append((name, value, refused, wrong[:2]))
    assert len({name for name, _, _ in odd}) > 80
    assert disagreed == []
