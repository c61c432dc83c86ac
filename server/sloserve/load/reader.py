"""
Traces from CSV files: time, prompt tokens, output tokens, and perhaps a class.

A header row names the columns (names that public traces use are known), or there is none and the
order is time, prompt, output[, class]. `.gz` is unpacked.
"""

import csv
import gzip
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from sloserve.errors import BadInput
from sloserve.load.trace import Arrival, Trace, in_order

COLUMNS = {
    "time": ("t_s", "time", "time_s", "timestamp", "t", "arrival", "arrival_s", "arrived_at"),
    "prompt": (
        *("prompt_tokens", "prompt", "num_prompt_tokens", "input_tokens", "input_length"),
        *("contexttokens", "num_prefill_tokens", "request tokens", "isl"),
    ),
    "output": (
        *("output_tokens", "output", "num_output_tokens", "output_length", "completion_tokens"),
        *("generatedtokens", "num_decode_tokens", "response tokens", "osl"),
    ),
    "class": ("class", "slo_class", "label"),
}


def read_trace(path: Path) -> Trace:
    """
    The trace in a CSV file, in order of time, counted from its first request.

    Raises BadInput naming file, line and column of the first value that is not one.
    """
    try:
        with _open(path) as file:
            arrivals = list(_rows(file, where=str(path)))
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror or error}", field="--trace") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not text: {error}", field="--trace") from error
    if len(arrivals) < 2:
        raise BadInput(f"{path} has {len(arrivals)} requests, at least 2 needed", field="--trace")
    return from_arrivals(path.name.removesuffix(".gz").removesuffix(".csv"), arrivals)


def from_arrivals(name: str, arrivals: Iterable[Arrival], *, duration_s: float = 0.0) -> Trace:
    """
    A trace counted from its first request.

    Without a duration (seconds) the last request is followed by one mean gap, so that the rate
    is unbiased.
    """
    rows = in_order(arrivals)
    start_s = 0.0 if duration_s else rows[0].t_s
    shifted = tuple(
        Arrival(a.t_s - start_s, a.prompt_tokens, a.output_tokens, a.slo_class) for a in rows
    )
    span_s = shifted[-1].t_s
    duration_s = duration_s or (span_s * len(rows) / (len(rows) - 1) if span_s else 1.0)
    return Trace(name, shifted, duration_s)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def _rows(file: TextIO, *, where: str) -> Iterable[Arrival]:
    lines = csv.reader(file)
    columns: dict[str, int] | None = None
    for row in lines:
        if not row or (len(row) == 1 and not row[0].strip()) or row[0].startswith("#"):
            continue
        if columns is None:
            columns = _columns(row, where=where)
            if columns is not None:
                continue
            columns = {"time": 0, "prompt": 1, "output": 2} | ({"class": 3} if row[3:4] else {})
        yield _arrival(row, columns, where=f"{where}, line {lines.line_num}")


def _columns(row: Sequence[str], *, where: str) -> dict[str, int] | None:
    """Where each column stands by a header row; None when the row is data already."""
    names = [cell.strip().lower() for cell in row]
    if _is_number(names[0]) and len(names) >= 3:
        return None
    found = {
        column: next(names.index(name) for name in known if name in names)
        for column, known in COLUMNS.items()
        if any(name in names for name in known)
    }
    for column in ("time", "prompt", "output"):
        if column not in found:
            raise BadInput(
                f"{where}, line 1: no column for {column}; the header has {', '.join(row)};"
                f" known names: {', '.join(COLUMNS[column])}",
                field="--trace",
            )
    return found


def _arrival(row: Sequence[str], columns: dict[str, int], *, where: str) -> Arrival:
    def cell(column: str) -> str:
        if columns[column] >= len(row):
            raise BadInput(f"{where}: column {column} is missing", field="--trace")
        return row[columns[column]].strip()

    def tokens(column: str) -> int:
        text = cell(column)
        number = float(text) if _is_number(text) else -1.0
        if number < 1 or number != int(number):
            raise BadInput(
                f"{where}, column {column}: {text!r} is not a number of tokens >= 1",
                field="--trace",
            )
        return int(number)

    return Arrival(
        t_s=_time_s(cell("time"), where=where),
        prompt_tokens=tokens("prompt"),
        output_tokens=tokens("output"),
        slo_class=cell("class") if "class" in columns else "",
    )


def _time_s(text: str, *, where: str) -> float:
    if _is_number(text):
        return float(text)
    head, dot, fraction = text.partition(".")  # Azure writes seven digits, Python reads six
    try:
        return datetime.fromisoformat(head + dot + fraction[:6]).timestamp()
    except ValueError:
        raise BadInput(
            f"{where}, column time: {text!r} is neither seconds nor a date", field="--trace"
        ) from None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
