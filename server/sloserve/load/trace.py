"""Requests to come: when, how long, of which class. Values only; every change makes a new one."""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sloserve.errors import BadInput

Shares = Mapping[str, Mapping[str, float]]
"""Label of a trace's row -> class -> share. The label "" stands for every row not named."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: seconds after the start, tokens, and a label or class ("" = none given)."""

    t_s: float
    prompt_tokens: int
    output_tokens: int
    slo_class: str = ""

    @property
    def total_tokens(self) -> int:
        """Prompt and output together."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Trace:
    """
    Requests in order of arrival, all in [0, duration_s).

    `notes` says in words what was done to the source (cut, dropped, stretched): reports print it.
    """

    name: str
    arrivals: tuple[Arrival, ...]
    duration_s: float
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.arrivals) / self.duration_s

    def with_note(self, note: str) -> "Trace":
        """The same requests, one more note."""
        return replace(self, notes=(*self.notes, note))

    def at_rate(self, rate: float) -> "Trace":
        """The same requests at `rate` (requests/s): time is stretched linearly, bursts stay."""
        if not rate > 0:
            raise BadInput(f"{rate} is not a rate in requests/s above 0", field="--rate")
        factor = self.rate / rate
        return replace(
            self,
            arrivals=tuple(replace(a, t_s=a.t_s * factor) for a in self.arrivals),
            duration_s=self.duration_s * factor,
            notes=(*self.notes, f"time stretched x{factor:.3f} to {rate:g} requests/s"),
        )

    def window(self, start_s: float, duration_s: float) -> "Trace":
        """
        The requests in [start, start + duration), time counted from `start_s`.

        Past its end the trace begins again, so any window can be filled; a note says so.
        """
        picked: list[Arrival] = []
        lap = math.floor(start_s / self.duration_s)
        laps = 0
        while lap * self.duration_s < start_s + duration_s:
            offset_s = lap * self.duration_s - start_s
            picked += [
                replace(a, t_s=a.t_s + offset_s)
                for a in self.arrivals
                if 0 <= a.t_s + offset_s < duration_s
            ]
            lap, laps = lap + 1, laps + 1
        cut = Trace(self.name, tuple(picked), duration_s, self.notes)
        return cut.with_note(f"the trace begins again {laps - 1} times") if laps > 1 else cut

    def capped(self, max_total_tokens: int, *, cut: bool = False) -> "Trace":
        """
        No request longer than the model: prompt + output <= `max_total_tokens`.

        Longer ones are dropped, or with `cut` lose prompt tokens (and output when even that is
        not enough); the number is noted.
        """
        long = [a for a in self.arrivals if a.total_tokens > max_total_tokens]
        if not long:
            return self
        if cut:
            kept = tuple(_cut(a, max_total_tokens) for a in self.arrivals)
        else:
            kept = tuple(a for a in self.arrivals if a.total_tokens <= max_total_tokens)
        if not kept:
            raise BadInput(
                f"every request of {self.name} is longer than {max_total_tokens} tokens",
                field="--max-len",
            )
        what = "cut to" if cut else "dropped: longer than"
        note = f"{len(long)} of {len(self)} requests {what} {max_total_tokens} tokens"
        return replace(self, arrivals=kept).with_note(note)

    def classed(self, shares: Shares, *, seed: int) -> "Trace":
        """Rows get a class at random by the shares of their label; the same seed, the same."""
        dice = random.Random(seed)
        arrivals = []
        for arrival in self.arrivals:
            chances = shares.get(arrival.slo_class) or shares.get("")
            point = dice.random()  # drawn for every row: a new label moves nobody else's class
            if chances:
                arrival = replace(arrival, slo_class=_pick(chances, point))
            arrivals.append(arrival)
        return replace(self, arrivals=tuple(arrivals))

    def classes(self) -> tuple[str, ...]:
        """The classes (or labels) that occur, in order of first arrival."""
        return tuple(dict.fromkeys(a.slo_class for a in self.arrivals))


def half_and_half(first: Trace, second: Trace, *, name: str) -> Trace:
    """
    As many requests of each: the first n of both, n = the shorter one's, over its duration.

    The longer one is stretched to that duration. Labels are the traces' names.
    """
    n = min(len(first), len(second))
    duration_s = first.duration_s if len(first) == n else second.duration_s
    rows: list[Arrival] = []
    for trace in (first, second):
        part = trace.arrivals[:n]
        covers_s = trace.duration_s if len(trace) == n else trace.arrivals[n].t_s
        factor = duration_s / covers_s
        rows += [replace(a, t_s=a.t_s * factor, slo_class=trace.name) for a in part]
    notes = [f"{t.name}: {note}" for t in (first, second) for note in t.notes]
    notes.append(f"{n} requests each of {first.name} and {second.name}")
    return Trace(name, in_order(rows), duration_s, tuple(notes))


def in_order(arrivals: Iterable[Arrival]) -> tuple[Arrival, ...]:
    """By time; equal times keep their order."""
    return tuple(sorted(arrivals, key=lambda a: a.t_s))


def parse_shares(texts: Iterable[str]) -> dict[str, dict[str, float]]:
    """
    `chat=0.5,batch=0.5` for all rows, `coding:code=1` for the rows labelled `coding`.

    Shares are relative. Raises BadInput with the faulty part.
    """
    shares: dict[str, dict[str, float]] = {}
    for text in texts:
        label, colon, rest = text.rpartition(":")
        chances: dict[str, float] = {}
        for part in rest.split(","):
            name, equals, number = part.partition("=")
            try:
                share = float(number) if equals else 1.0
            except ValueError:
                share = -1.0
            if not name.strip() or not 0 <= share < math.inf:
                raise BadInput(
                    f"{part!r} in {text!r} is not CLASS=SHARE, e.g. chat=0.7,batch=0.3",
                    field="--shares",
                )
            chances[name.strip()] = share
        if sum(chances.values()) <= 0:
            raise BadInput(f"the shares in {text!r} add up to nothing", field="--shares")
        shares[label.strip() if colon else ""] = chances
    return shares


def _pick(chances: Mapping[str, float], point: float) -> str:
    left = point * sum(chances.values())
    for name, share in chances.items():
        left -= share
        if left < 0:
            return name
    return next(reversed(list(chances)))


def _cut(arrival: Arrival, max_total_tokens: int) -> Arrival:
    output = min(arrival.output_tokens, max_total_tokens - 1)
    prompt = min(arrival.prompt_tokens, max_total_tokens - output)
    return replace(arrival, prompt_tokens=prompt, output_tokens=output)
