"""Writing PromQL: selectors, durations, numbers."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def duration(seconds: float) -> str:
    """A Prometheus duration in its largest whole unit: `90m`, `7d`; whole seconds."""
    whole_s = round(seconds)
    for unit_s, unit in _UNITS:
        if whole_s and whole_s % unit_s == 0:
            return f"{whole_s // unit_s}{unit}"
    return f"{whole_s}s"


def number(value: float) -> str:
    """A number as people write it, to nine digits: `0.144`, `1e-05`."""
    return f"{value:.9g}"


def quoted(text: str) -> str:
    """A PromQL string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def selector(name: str, /, **labels: str) -> str:
    """
    Series of `name` with these label values; a value that begins with `~` is a regular expression,
    an empty one is left out.
    """
    matchers = [
        f"{label}=~{quoted(value[1:])}" if value.startswith("~") else f"{label}={quoted(value)}"
        for label, value in labels.items()
        if value
    ]
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name
