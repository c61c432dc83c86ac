"""The grammar of an answer that calls functions, as Lark text for llguidance."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sloserve.tools.formats import ToolFormat

Literal = Callable[[str], str]
"""A text as Lark: a string, or the model's special token of that name."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a request offers; `schema` is the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]


def calls_grammar(
    how: ToolFormat,
    functions: Sequence[Function],
    *,
    several: bool,
    literal: Literal,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """
    Rules that let an answer be calls of `functions` and nothing else; at most one unless
    `several`. With `answer`, a JSON schema, it may be a value of that instead.
    """

    def lark(texts: Sequence[str]) -> str:
        return " ".join(literal(text) for text in texts)

    more = f"({lark(how.between)} call)*" if several else ""
    calls = " ".join(part for part in (lark(how.first), "call", more, lark(how.last)) if part)
    rules = [f"calls: {calls}", "call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
    rules.insert(0, "start: calls" if answer is None else "start: calls | answer")
    if answer is not None:
        rules.append(f"answer: %json {json.dumps(answer)}")
    for i, function in enumerate(functions):
        opening = lark((*how.before, function.name, *how.after))
        rules.append(f"call_{i}: {opening} args_{i} {lark(how.close)}".rstrip())
        rules.append(f"args_{i}: %json {json.dumps(function.schema)}")
    return "\n".join(rules)
