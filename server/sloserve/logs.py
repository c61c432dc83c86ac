"""
What a process tells about itself: one line per decision worth asking about, for people or as JSON.

A line has a message that is the same every time, and fields: those given to the call as `extra`,
and those bound to the running task (the id of its request, the service it works on). Fields
without a value are left out. Of other packages' loggers only the message is shown: what they put
into their records is not ours to judge. No line ever holds a key, a prompt or an answer.
"""

import argparse
import contextvars
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TextIO

from sloserve.errors import BadInput

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("human", "json")
LEVEL_VARIABLE, FORMAT_VARIABLE = "SLOSERVE_LOG_LEVEL", "SLOSERVE_LOG_FORMAT"
OWN = ("sloserve", "sloserve_operator")
"""Loggers that are ours, by the first part of their names."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_bound: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar(
    "log fields", default=MappingProxyType({})
)


def bind(**fields: object) -> None:
    """Put these fields on every later line of this task, and of the tasks it starts."""
    _bound.set({**_bound.get(), **fields})


def set_up(*, level: str, form: str, stream: TextIO | None = None) -> None:
    """
    Log to `stream` (stderr) from `level` on. Where logging was set up before, it stays as it is.

    Other packages tell no more than `info`: what they tell for debugging may hold whole bodies.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else HumanLines())
    root.addHandler(handler)
    own = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(own, logging.INFO))
    for name in OWN:
        logging.getLogger(name).setLevel(own)


def add_log_flags(parser: argparse.ArgumentParser, *, default_level: str = "info") -> None:
    """Add `--log-level` and `--log-format`; their defaults come from the environment."""
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        help=f"how much is told on stderr (${LEVEL_VARIABLE}, else {default_level})",
    )
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        help=f"lines for people, or one JSON object each (${FORMAT_VARIABLE}, else human)",
    )
    parser.set_defaults(default_log_level=default_level)


def set_up_from(args: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """What the flags say, else the environment. Raises BadInput for a variable that can't be."""
    default = args.default_log_level
    set_up(
        level=args.log_level or _chosen(environ, LEVEL_VARIABLE, LEVELS, default=default),
        form=args.log_format or _chosen(environ, FORMAT_VARIABLE, FORMATS, default="human"),
    )


def environment_of(args: argparse.Namespace) -> dict[str, str]:
    """The flags that were given, as variables for child processes."""
    given = {LEVEL_VARIABLE: args.log_level, FORMAT_VARIABLE: args.log_format}
    return {name: value for name, value in given.items() if value is not None}


def _chosen(
    environ: Mapping[str, str], variable: str, allowed: tuple[str, ...], *, default: str
) -> str:
    value = environ.get(variable) or default
    if value not in allowed:
        raise BadInput(f"is {value!r}; allowed: {', '.join(allowed)}", field=variable)
    return value


class HumanLines(logging.Formatter):
    """`time LEVEL logger: message name=value ...`, local time, the traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        at = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        told = [f"{at} {record.levelname:<7} {record.name}: {record.getMessage()}"]
        told += [f"{name}={_word(value)}" for name, value in _fields(record)]
        return "\n".join([" ".join(told), *_exception(self, record)])


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: dict[str, object] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record):
            line.setdefault(name, value)
        for text in _exception(self, record):
            line["exception"] = text
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """What was given to this line, then what is bound to its task."""
    own = record.name.partition(".")[0] in OWN
    given = {k: v for k, v in vars(record).items() if k not in _STANDARD} if own else {}
    for name, value in {**_bound.get(), **given}.items():
        if value is None or value == "":
            continue
        if isinstance(value, float):
            yield name, round(value, 6) if math.isfinite(value) else str(value)
        else:
            yield name, value


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    if not record.exc_info or record.exc_info[0] is None:
        return []
    return [formatter.formatException(record.exc_info)]


def _word(value: object) -> str:
    """A value that can't be taken for two, or for another line."""
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    text = str(value)
    plain = text.isprintable() and not any(sign in text for sign in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())
