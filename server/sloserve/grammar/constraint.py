"""What a request demands of its answer's shape, before it is compiled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_CHARACTERS = 262_144
"""Of one constraint's text; a JSON schema of that size compiles within about a second."""
WHITESPACE = r"( |\r?\n[ \t]{0,32})"
"""
Between the parts of JSON: a space, or a new line and its indentation, as JSON is really written.
Where more is allowed, a weak model writes blanks for as long as it may.
"""
OPTIONS = "x-guidance"
"""The key at the top of a schema where llguidance looks for options."""


class Kind(StrEnum):
    """The language a constraint is written in."""

    JSON = "JSON schema"
    REGEX = "regular expression"
    GRAMMAR = "grammar"  # Lark as llguidance reads it, or GBNF


@dataclass(frozen=True, slots=True)
class Constraint:
    """A shape in one of three languages. Equal ones are compiled once."""

    kind: Kind
    text: str
    field: str
    """Where in the request it stands, for messages."""


def of_schema(schema: Mapping[str, Any], *, field: str, lenient: bool) -> Constraint:
    """JSON that a schema describes. `lenient`: keywords that can't be enforced are passed over."""
    return Constraint(Kind.JSON, json.dumps(with_options(schema, lenient=lenient)), field)


def of_choices(choices: Sequence[str], *, field: str) -> Constraint:
    """One of some texts."""
    return Constraint(Kind.GRAMMAR, "start: " + " | ".join(map(json.dumps, choices)), field)


def with_options(schema: Mapping[str, Any], *, lenient: bool) -> dict[str, Any]:
    """The schema with our options put beneath those that it brings itself."""
    given = schema.get(OPTIONS)
    options = {"whitespace_pattern": WHITESPACE, "lenient": lenient}
    return {**schema, OPTIONS: {**options, **given} if isinstance(given, dict) else options}
