"""
Quantities in the form that the API server gives back.

It stores `1000m` as `1` and `1024Mi` as `1Gi`. What we compare with the cluster must be written
the same way, or every look would find a difference.
"""

import re
from decimal import ROUND_CEILING, Decimal

from sloserve.errors import BadInput

_QUANTITY = re.compile(
    r"([+-]?[0-9]*\.?[0-9]+|[+-]?[0-9]+\.)((?:[KMGTPE]i)|[numkMGTPE]|[eE][+-]?[0-9]+)?"
)
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
_POWERS = {unit: power for power, unit in _DECIMAL.items()}


def canonical(value: object, *, field: str) -> str:
    """
    The canonical text of a quantity: no fraction, the largest unit that allows it.

    Raises BadInput for what is none.
    """
    text = str(value)
    match = None if isinstance(value, bool) else _QUANTITY.fullmatch(text)
    if match is None:
        raise BadInput(f"is {value!r}; must be a quantity, as 1, 500m or 8Gi", field=field)
    number, unit = Decimal(match[1]), match[2] or ""
    if unit.endswith("i"):
        amount = number * 1024 ** _BINARY.index(unit)
        if amount == amount.to_integral_value() and abs(amount) >= 1024:
            return _binary(int(amount))
        return _decimal(amount)
    if unit[:1] in ("e", "E") and len(unit) > 1:
        power = int(unit[1:])
        return _exponent(number, power)
    return _decimal(number * Decimal(10) ** _POWERS[unit])


def _binary(amount: int) -> str:
    power = 0
    while power < len(_BINARY) - 1 and amount % 1024 == 0 and amount:
        amount, power = amount // 1024, power + 1
    return f"{amount}{_BINARY[power]}"


def _decimal(amount: Decimal) -> str:
    nano = int((amount * 10**9).to_integral_value(ROUND_CEILING))  # finer is rounded up, as there
    if nano == 0:
        return "0"
    power = -9
    while power < 18 and nano % 1000 == 0:
        nano, power = nano // 1000, power + 3
    return f"{nano}{_DECIMAL[power]}"


def _exponent(number: Decimal, power: int) -> str:
    amount = number * Decimal(10) ** power
    digits, shown = amount, 0
    while digits and digits % 1000 == 0:
        digits, shown = digits / 1000, shown + 3
    if digits != digits.to_integral_value():
        return _decimal(amount)
    return f"{int(digits)}e{shown}" if shown else f"{int(digits)}"


def resources(spec: object, *, field: str) -> dict[str, object]:
    """Resource requirements with canonical quantities, empty parts left out."""
    given = dict(spec) if isinstance(spec, dict) else {}
    for part in ("limits", "requests"):
        if amounts := given.pop(part, None):
            given[part] = {
                name: canonical(amount, field=f"{field}.{part}.{name}")
                for name, amount in amounts.items()
            }
    return {name: value for name, value in given.items() if value}
