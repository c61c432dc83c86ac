"""A gateway's counters over time: rates, what clients saw, and what broke promises."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import urlencode

Key = tuple[str, str, str]
"""What is counted, of which class, and a word: a decision, a reason, a bucket's edge."""
Counts = Mapping[Key, float]

SLOT_S = 5.0
NUM_SLOTS = 120
STRIP_SLOTS = 3
"""Slots in one cell of a strip."""

_DECIDED, _KEPT = "sloserve_requests_total", "sloserve_slo_attained_total"
_MISSED, _JUDGED = "sloserve_slo_missed_total", "sloserve_slo_requests_total"
_TTFT, _TPOT = "sloserve_gateway_ttft_seconds", "sloserve_gateway_tpot_seconds"
_WORDS = {_DECIDED: "decision", _MISSED: "reason", _KEPT: "promise"}
NAMES = (_DECIDED, _JUDGED, _KEPT, _MISSED, _TTFT, _TPOT)
PATH = "/metrics?" + urlencode([("name[]", name) for name in NAMES])
"""What is asked of a gateway's internal address."""

_SAMPLE = re.compile(r'^(\w+)\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\} (\S+)', re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parse_counts(text: str) -> Counts:
    """
    The counters in a gateway's Prometheus text. Raises ValueError when a number is none.

    A request without a decision (it was refused before one) counts as `refused`.
    """
    counts: dict[Key, float] = {}
    for name, raw_labels, number in _SAMPLE.findall(text):
        labels = dict(_LABEL.findall(raw_labels))
        if name.endswith("_bucket"):
            word, name = labels.get("le", ""), name.removesuffix("_bucket")
        elif name in (_JUDGED, *_WORDS):
            word = labels.get(_WORDS.get(name, ""), "")
        else:
            continue
        if name == _DECIDED and word == "none":
            word = "refused"
        key = (name, labels.get("slo_class", ""), word)
        counts[key] = counts.get(key, 0.0) + float(number)
    return counts


@dataclass(frozen=True, slots=True)
class Delta:
    """What was counted over some seconds."""

    elapsed_s: float
    counts: Counts

    def per_s(self, slo_class: str, decision: str) -> float | None:
        """Requests per second that ended with this decision; None: too soon to tell."""
        return self._rate((_DECIDED, slo_class, decision))

    def goodput_per_s(self, slo_class: str) -> float | None:
        """Requests per second that kept every promise."""
        return self._rate((_KEPT, slo_class, "all"))

    def missed(self, slo_class: str) -> dict[str, int]:
        """Broken promises by what bound, the most frequent first."""
        found = {
            word: round(n)
            for (name, of_class, word), n in self.counts.items()
            if (name, of_class) == (_MISSED, slo_class) and n > 0
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def ttft_s(self, slo_class: str, share: float) -> float | None:
        """The quantile of the times to first token that clients saw; None: there were none."""
        return quantile(share, self._buckets(_TTFT, slo_class))

    def tpot_s(self, slo_class: str, share: float) -> float | None:
        """The quantile of the mean times per output token that clients saw."""
        return quantile(share, self._buckets(_TPOT, slo_class))

    def _rate(self, key: Key) -> float | None:
        return self.counts.get(key, 0.0) / self.elapsed_s if self.elapsed_s > 0 else None

    def _buckets(self, name: str, slo_class: str) -> list[tuple[float, float]]:
        return sorted(
            (float(edge), n)
            for (of, of_class, edge), n in self.counts.items()
            if (of, of_class) == (name, slo_class)
        )


def quantile(share: float, buckets: list[tuple[float, float]]) -> float | None:
    """
    As Prometheus does it: linear within a bucket, the last finite edge beyond it.

    `buckets` are (upper edge, number at or below it), ascending, the last edge infinite.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    rank, low, below = share * total, 0.0, 0.0
    for edge, at_or_below in buckets:
        if at_or_below >= rank and at_or_below > below:
            if edge == float("inf"):
                return low
            return low + (edge - low) * (rank - below) / (at_or_below - below)
        low, below = edge, at_or_below
    return low


class History:
    """
    The counters of the last ten minutes: the latest sample of every 5 s.

    A counter that fell belongs to a new process: what came before it is forgotten.
    """

    def __init__(self) -> None:
        self._slots: dict[int, tuple[float, Counts]] = {}

    def add(self, counts: Counts, at_s: float) -> None:
        """A sample, later than all before it."""
        if self._slots:
            latest = self._latest()[1]
            if any(counts.get(key, 0.0) < n for key, n in latest.items()):
                self._slots.clear()
        number = int(at_s / SLOT_S)
        if not self._slots:
            number -= 1  # where counting begins: the next sample must not take its place
        self._slots[number] = (at_s, counts)
        for old in [n for n in self._slots if n < number - NUM_SLOTS]:
            del self._slots[old]

    def over(self, seconds: float) -> Delta:
        """What was counted in the last `seconds`, or since the first sample if that is later."""
        if not self._slots:
            return Delta(0.0, {})
        end_s, end = self._latest()
        start_s, start = next(
            sample for sample in self._slots.values() if sample[0] >= end_s - seconds
        )
        return Delta(end_s - start_s, _less(end, start))

    def strip(self, slo_class: str, *, now_s: float) -> list[tuple[int, int]]:
        """
        (judged, kept) in cells of 15 s over ten minutes, oldest first; a cell nobody watched
        is empty.
        """
        cells = [(0, 0)] * (NUM_SLOTS // STRIP_SLOTS)
        newest = int(now_s / SLOT_S) // STRIP_SLOTS
        for number, judged, kept in self._steps(slo_class):
            cell = len(cells) - 1 - (newest - number // STRIP_SLOTS)
            if 0 <= cell < len(cells):
                cells[cell] = (cells[cell][0] + judged, cells[cell][1] + kept)
        return cells

    def _steps(self, slo_class: str) -> Iterator[tuple[int, int, int]]:
        """Per slot: its number, and how many were judged and kept in it."""
        judged, kept = (_JUDGED, slo_class, ""), (_KEPT, slo_class, "all")
        for (_, (_, old)), (number, (_, new)) in pairwise(self._slots.items()):
            yield (
                number,
                round(new.get(judged, 0.0) - old.get(judged, 0.0)),
                round(new.get(kept, 0.0) - old.get(kept, 0.0)),
            )

    def _latest(self) -> tuple[float, Counts]:
        return next(reversed(self._slots.values()))


def _less(new: Counts, old: Counts) -> Counts:
    return {key: n - old.get(key, 0.0) for key, n in new.items()}
