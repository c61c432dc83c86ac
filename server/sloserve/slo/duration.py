"""Durations and sizes as people write them in a manifest: `500ms`, `1m30s`, `7d`, `512Mi`."""

import re
from decimal import Decimal

from sloserve.errors import BadInput

_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_PART = r"[0-9]{1,9}(?:\.[0-9]{1,6})?(?:ms|s|m|h|d)"
_DURATION = re.compile(f"(?:{_PART})+")
_MAX_LENGTH = 32

_BYTES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T|Ki|Mi|Gi|Ti|)")


def parse_duration(value: object, *, field: str, days: bool = False) -> float:
    """
    Seconds of a duration: numbers with the units ms, s, m, h, one after the other (`1m30s`).

    `days` allows the unit d as well. A number without a unit is refused: nobody knows whether 5
    means seconds or milliseconds. Raises BadInput that names `field`.
    """
    units = "ms, s, m, h or d" if days else "ms, s, m or h"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(
            f"{value!r} is not a duration; write a number with a unit ({units}), as 500ms",
            field=field,
        )
    text = str(value)
    known = len(text) <= _MAX_LENGTH and _DURATION.fullmatch(text)
    if not known or ("d" in text and not days):
        hint = f"; is it {text}ms or {text}s?" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else ""
        raise BadInput(
            f"{text[:64]!r} is not a duration{hint or f'; write 500ms, 2s or 1m30s ({units})'}",
            field=field,
        )
    total = Decimal(0)
    for part in re.findall(_PART, text):
        unit = part.lstrip("0123456789.")
        total += Decimal(part.removesuffix(unit)) * _SECONDS[unit]
    return float(total)


def format_duration(seconds: float) -> str:
    """
    The shortest exact way to write a duration of 0 seconds or more.

    `parse_duration(format_duration(x)) == x` for every float that a duration of up to 15 digits
    can name.
    """
    exact = Decimal(repr(seconds))
    if exact == 0:
        return "0s"
    for unit in ("h", "m", "s"):
        count = exact / _SECONDS[unit]
        if exact % _SECONDS[unit] == 0:
            return f"{int(count)}{unit}"
    ms = exact * 1000
    text = f"{ms:f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}ms"


def parse_size(value: object, *, field: str) -> int:
    """Bytes of a size: a count of bytes, or a number with k, M, G, T, Ki, Mi, Gi or Ti."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    known = isinstance(value, int | str) and not isinstance(value, bool)
    text = str(value)
    match = _SIZE.fullmatch(text) if known and len(text) <= _MAX_LENGTH else None
    if match is None:
        raise BadInput(
            f"{value!r} is not a size; write bytes or a number with a unit, as 512Mi or 8Gi",
            field=field,
        )
    return int(Decimal(match[1]) * _BYTES[match[2]])
