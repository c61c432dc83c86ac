"""
The error budget of a class, in daily buckets that survive every pod.

    missed    = total - attained            over the days of the period
    allowed   = (1 - objective) * total
    remaining = 1 - missed / allowed        1 without requests, negative when overspent

Gateways count from their start. What of a gateway's counters is in the buckets already is
remembered on its pod (`names.COUNTED`): an operator that restarts neither loses a request nor
counts one twice, but for the seconds between two writes when it dies between them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from sloserve_operator.api import Obj
from sloserve_operator.reports import GatewayReport, Tally

Days = Mapping[str, Tally]
"""Requests per day (`2026-11-21`, UTC)."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Counters of one gateway process that are in the buckets."""

    restarts: int
    classes: Mapping[str, Tally]

    def text(self) -> str:
        """As the annotation holds it."""
        classes = {name: [t.total, t.attained] for name, t in sorted(self.classes.items())}
        return json.dumps({"restarts": self.restarts, "classes": classes}, separators=(",", ":"))


def parse_counted(text: str | None) -> Counted | None:
    """What an annotation says; None when it is missing or not ours."""
    if not text:
        return None
    try:
        data = json.loads(text)
        classes = {str(n): Tally(int(a), int(b)) for n, (a, b) in data["classes"].items()}
        return Counted(int(data["restarts"]), classes)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class Book:
    """The buckets of every class, and what is in them of each gateway (by pod uid)."""

    days: Mapping[str, Days] = field(default_factory=dict)
    counted: Mapping[str, Counted] = field(default_factory=dict)

    def class_total(self, slo_class: str) -> Tally:
        """All days of a class."""
        return sum(self.days.get(slo_class, {}).values(), Tally())


def opened(status: Obj) -> Book:
    """The book as status keeps it."""
    days = {
        str(c["name"]): {
            str(d["date"]): Tally(int(d.get("total", 0)), int(d.get("attained", 0)))
            for d in c.get("days") or ()
        }
        for c in status.get("classes") or ()
    }
    return Book(days)


@dataclass(frozen=True, slots=True)
class Heard:
    """A gateway's report with the process it came from; `noted` is its pod's annotation."""

    pod_uid: str
    restarts: int
    noted: Counted | None
    report: GatewayReport


def entered(book: Book, heard: Sequence[Heard], *, today: date, classes: Sequence[str]) -> Book:
    """The book with everything entered that gateways counted since. Never takes away."""
    days = {name: dict(of_class) for name, of_class in book.days.items()}
    counted = dict(book.counted)
    for one in heard:
        known = counted.get(one.pod_uid) or one.noted
        base = known.classes if known is not None and known.restarts == one.restarts else {}
        now = {name: one.report.classes[name].since_start for name in one.report.classes}
        for name, tally in now.items():
            before = base.get(name, Tally())
            added = tally - before if tally.total >= before.total else tally
            if name in classes and added.total > 0:
                of_class = days.setdefault(name, {})
                attained = Tally(added.total, max(0, added.attained))
                of_class[today.isoformat()] = of_class.get(today.isoformat(), Tally()) + attained
        counted[one.pod_uid] = Counted(one.restarts, now)
    return Book(days, counted)


def trimmed(
    book: Book, *, today: date, period_s: float, classes: Sequence[str], pods: Sequence[str]
) -> Book:
    """The book cut to the days of the period, the classes that exist and the pods that live."""
    num_days = max(1, round(period_s / 86400))
    first = (today - timedelta(days=num_days - 1)).isoformat()
    days = {
        name: {day: tally for day, tally in sorted(book.days[name].items()) if day >= first}
        for name in classes
        if name in book.days
    }
    return Book(days, {uid: c for uid, c in book.counted.items() if uid in pods})


def remaining(total: Tally, objective: float) -> float:
    """Share of the error budget that is left: 1 untouched, 0 spent, negative overspent."""
    if total.total == 0:
        return 1.0
    allowed = (1.0 - objective) * total.total
    missed = total.total - total.attained
    if allowed <= 0.0:
        return 1.0 if missed == 0 else -1.0 * missed
    return 1.0 - missed / allowed
