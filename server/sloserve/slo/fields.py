"""Reading a manifest field by field; every refusal names path, value, allowed range and remedy."""

import difflib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import TypeVar

from sloserve.errors import BadInput
from sloserve.slo.duration import format_duration, parse_duration

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 40
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]{1,6}0*)?")
_MAX_DECIMAL = 32

D = TypeVar("D")
E = TypeVar("E", bound=StrEnum)


class Fields:
    """
    A mapping of a manifest at `path`, whose keys are all known.

    A key that is absent or null takes its default. Every reader raises BadInput.
    """

    def __init__(self, value: object, path: str, *known: str) -> None:
        self.path = path
        if not isinstance(value, Mapping):
            raise BadInput(
                f"is {describe(value)}; must be a mapping with {_list(known)}", field=path or None
            )
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
                hint = f"did you mean {close[0]!r}?" if close else f"known here: {_list(known)}"
                raise BadInput(f"is not a known field; {hint}", field=self.at(str(key)))
        self._values: Mapping[str, object] = value

    def at(self, key: str) -> str:
        """The path of a key."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> object:
        """The raw value; None when absent."""
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def require(self, key: str, example: str) -> None:
        """Refuse when `key` is absent."""
        if not self.has(key):
            raise BadInput(f"is missing; write for example {key}: {example}", field=self.at(key))

    def exactly_one(self, first: str, second: str) -> None:
        """Refuse unless one of the two is there."""
        if self.has(first) == self.has(second):
            seen = "both are" if self.has(first) else "neither is"
            raise BadInput(
                f"exactly one of {first} and {second} must be given; {seen}", field=self.path
            )

    def inner(self, key: str, *known: str) -> "Fields":
        """The mapping under `key`; an empty one when absent."""
        value = self.get(key)
        return Fields({} if value is None else value, self.at(key), *known)

    def items(self, key: str, *known: str, most: int, least: int = 0) -> list["Fields"]:
        """The mappings of the list under `key`."""
        return [Fields(v, p, *known) for v, p in self._list(key, least=least, most=most)]

    def text(
        self,
        key: str,
        default: D,
        *,
        pattern: str | None = None,
        hint: str = "",
        longest: int = 253,
    ) -> str | D:
        """A string that is not empty; `hint` says in words what `pattern` means."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            raise BadInput(
                f"is {describe(value)}; must be text{f', {hint}' if hint else ''}",
                field=self.at(key),
            )
        if len(value) > longest:
            raise BadInput(
                f"has {len(value)} characters; at most {longest} are allowed", field=self.at(key)
            )
        if pattern is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise BadInput(f"is {value!r}; must be {hint}", field=self.at(key))
        return value

    def name(self, key: str, default: D) -> str | D:
        """A name that may become part of a Kubernetes name or a metric label."""
        return self.text(
            key,
            default,
            pattern=NAME.pattern,
            hint="lower-case letters, digits and '-', starting with a letter, not ending with '-'",
            longest=MAX_NAME,
        )

    def choice(self, key: str, default: str, *allowed: str) -> str:
        """One of a few words."""
        value = self.get(key)
        if value is None:
            return default
        if value not in allowed:
            close = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise BadInput(
                f"is {value!r}; must be one of {', '.join(allowed)}{hint}", field=self.at(key)
            )
        return str(value)

    def enum(self, key: str, default: E) -> E:
        """One of the values of an enumeration."""
        kind = type(default)
        return kind(self.choice(key, default.value, *(member.value for member in kind)))

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadInput(f"is {describe(value)}; must be true or false", field=self.at(key))
        return value

    def integer(self, key: str, default: D, *, least: int, most: int) -> int | D:
        """A whole number within [least, most]; 2.0 is 2, as for an API server."""
        value = whole(self.get(key))
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadInput(
                f"is {value!r}; must be a whole number from {least} to {most}", field=self.at(key)
            )
        return value

    def decimal(self, key: str, default: D, *, least: str, most: str) -> Decimal | D:
        """
        A whole number or a decimal string with at most 6 decimals, within [least, most].

        A decimal without quotes is refused: Kubernetes has no type for it.
        """
        value = whole(self.get(key))
        if value is None:
            return default
        text = str(value)
        number = Decimal(text) if len(text) <= _MAX_DECIMAL and _DECIMAL.fullmatch(text) else None
        if number is None or not Decimal(least) <= number <= Decimal(most):
            raise BadInput(
                f"is {value!r}; must be a number from {least} to {most} with at most 6 decimals",
                field=self.at(key),
            )
        if isinstance(value, float):
            raise BadInput(
                f"is {value!r}; a number with decimals must be in quotes: {key}: {text!r}",
                field=self.at(key),
            )
        return number

    def duration(
        self, key: str, default: D, *, least_s: float, most_s: float, days: bool = False
    ) -> float | D:
        """Seconds of a duration within [least, most]."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise BadInput(
                f"is {describe(value)}; must be a duration with its unit, "
                f"from {format_duration(least_s)} to {format_duration(most_s)}, as 500ms",
                field=self.at(key),
            )
        seconds = parse_duration(value, field=self.at(key), days=days)
        if not least_s <= seconds <= most_s:
            raise BadInput(
                f"is {value}; must be from {format_duration(least_s)} to {format_duration(most_s)}",
                field=self.at(key),
            )
        return seconds

    def opaque(self, key: str) -> Mapping[str, object]:
        """A mapping that is kept as it is."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise BadInput(f"is {describe(value)}; must be a mapping", field=self.at(key))
        return dict(value)

    def _list(self, key: str, *, least: int, most: int) -> list[tuple[object, str]]:
        value = self.get(key)
        if value is None:
            value = []
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise BadInput(f"is {describe(value)}; must be a list", field=self.at(key))
        if not least <= len(value) <= most:
            raise BadInput(
                f"has {len(value)} entries; {least} to {most} are allowed", field=self.at(key)
            )
        return [(item, f"{self.at(key)}[{i}]") for i, item in enumerate(value)]


def unique(names: Sequence[str], path: str, what: str) -> None:
    """Refuse a name that is there twice; the second one is pointed at."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadInput(
                f"{name!r} names two {what}; names must differ", field=f"{path}[{i}].name"
            )


def whole(value: object) -> object:
    """The value; a whole number that was written with a point (2.0) as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def describe(value: object) -> str:
    """A value in a message: its kind in YAML's words, and itself when it is short."""
    if value is None:
        return "empty"
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "the truth value"),
        (int, "the number"),
        (float, "the number"),
        (str, "the text"),
    )
    for kind, words in kinds:
        if isinstance(value, kind):
            return f"{words} {value!r:.80}"
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _list(known: Sequence[str]) -> str:
    return ", ".join(known) if known else "nothing"
