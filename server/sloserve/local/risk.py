"""Which promise is at risk, since when, and what binds. Pure: told anew at every look."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sloserve.local.counts import History
from sloserve.local.overview import ClassRow, Overview
from sloserve.local.steps import StepLog
from sloserve.rules import RuleSettings

WINDOW_S = 300.0
MIN_MISSED = RuleSettings().min_missed
"""Fewer misses wake nobody: an alert would wait as well."""

_BINDS = {
    "TTFT": "prompts wait too long for their first token. More replicas, shorter prompts or a"
    " looser ttft help",
    "TPOT": "decoding is too slow beside what is promised already. More replicas, a service of its"
    " own for the tightest class or a looser tpot help",
    "KV": "KV blocks run out before time does. A larger kvCache, a smaller maxModelLen or more"
    " replicas help",
    "Replicas": "no replica was ready, or too few exist",
    "LateFirstToken": "promises were made and broken: steps took longer than predicted. Look for"
    " other load on this machine",
    "LateToken": "promises were made and broken: steps took longer than predicted. Look for other"
    " load on this machine",
    "ReplicaLost": "replicas ended under requests. Their logs say why",
    "SlowReader": "clients did not read their streams",
    "Loading": "the model was not loaded yet",
    "Draining": "replicas were going away",
    "QueueFull": "too many requests wait",
    "RateLimit": "keys are at their limits",
}
"""What a constraint means; docs/runbook.md has the long form."""


class Level(StrEnum):
    """How soon to look."""

    BAD = "bad"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong; `about` is `service`, `class NAME` or `replica ADDRESS`."""

    about: str
    level: Level
    title: str
    text: str
    since_s: float = 0.0
    """When it was first seen (monotonic)."""


def follow(
    before: Mapping[str, Trouble], found: list[Trouble], *, now_s: float
) -> dict[str, Trouble]:
    """
    The troubles of now, the worst first; what was there before keeps its time.

    A class that goes from bad to a warning and back is in trouble all the while.
    """
    ranked = sorted(found, key=lambda trouble: trouble.level is not Level.BAD)
    return {
        trouble.about: Trouble(
            trouble.about,
            trouble.level,
            trouble.title,
            trouble.text,
            before[trouble.about].since_s if trouble.about in before else now_s,
        )
        for trouble in ranked
    }


def find(
    overview: Overview | None,
    *,
    was_ready: bool,
    history: History,
    steps: Mapping[str, StepLog],
) -> list[Trouble]:
    """
    What is wrong now. A service that has not been ready yet is not in trouble: it starts.

    `overview` is None while the gateway does not answer; `steps` are by address.
    """
    if not was_ready:
        return []
    if overview is None:
        return [
            Trouble("service", Level.BAD, "The gateway does not answer",
                    "It is started again when it ends; its log says more.")
        ]  # fmt: skip
    found = [*_of_replicas(overview, steps)]
    if not overview.num_ready:
        text = "Requests are held for a while, then refused with 503."
        found.append(Trouble("service", Level.BAD, "No replica is ready", text))
    of_classes = [of_class(row, overview, history=history) for row in overview.classes]
    return [*found, *(trouble for trouble in of_classes if trouble is not None)]


def of_class(row: ClassRow, overview: Overview, *, history: History) -> Trouble | None:
    """What is wrong with a class of the service; None: nothing."""
    return _missed(row, history) or _closed(row, overview)


def _missed(row: ClassRow, history: History) -> Trouble | None:
    if row.attainment is None or row.attainment >= row.objective:
        return None
    num_missed = row.num_recent - row.num_recent_kept
    text = (
        f"{_percent(row.attainment)} of the promised {_percent(row.objective)} kept in five "
        f"minutes: {num_missed} of {row.num_recent} missed. "
    )
    about = f"class {row.name}"
    if num_missed < MIN_MISSED:
        return Trouble(about, Level.WARNING, f"{row.name} is below its objective",
                       text + "So few may be chance.")  # fmt: skip
    return Trouble(about, Level.BAD, f"{row.name} misses its promise",
                   text + _binding(history.over(WINDOW_S).missed(row.name)))  # fmt: skip


def _binding(missed: Mapping[str, int]) -> str:
    if not missed:
        return ""
    reason, count = next(iter(missed.items()))
    meaning = _BINDS.get(reason)
    share = "" if len(missed) == 1 else f" ({count} of {sum(missed.values())})"
    return f"What binds: {reason}{share}" + (f": {meaning}." if meaning else ".")


def _closed(row: ClassRow, overview: Overview) -> Trouble | None:
    if row.frontier is not None or not row.num_arrived or not overview.num_ready:
        return None
    return Trouble(
        f"class {row.name}",
        Level.WARNING,
        f"{row.name} admits nothing now",
        "No replica could promise any prompt of this class: all are busy with what they have "
        "promised. Newcomers wait while their slack lasts.",
    )


def _of_replicas(overview: Overview, steps: Mapping[str, StepLog]) -> Iterator[Trouble]:
    for row in overview.replicas:
        about, log = f"replica {row.address}", steps.get(row.address)
        if row.state == "unknown":
            yield Trouble(about, Level.WARNING, f"{row.name} does not report",
                          f"{row.problem or 'silent'}.",
            )  # fmt: skip
        elif log is not None and log.stalled:
            yield Trouble(about, Level.BAD, f"{row.name} stands still",
                          "Work waits in it, and no step has ended for 10 s: /health fails.",
            )  # fmt: skip
        elif log is not None and log.off and log.mean_ratio is not None:
            yield Trouble(about, Level.WARNING, f"{row.name} misjudges its steps",
                          f"They take {log.mean_ratio:.2f} times as long as predicted. Promises "
                          "rest on the prediction: look for other load, or measure anew with "
                          "sloserve profile.",
            )  # fmt: skip


def _percent(share: float) -> str:
    """Never rounded up: 98.96 % is not 99 %."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:g} %"
