"""The gateway's counters: every request once, at its end, and the last minutes per class."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sloserve.errors import Reason
from sloserve.gateway.demand import RecentDemand
from sloserve.gateway.promise import Judgement
from sloserve.http.classes import BINDING, PROMISES, declare_classes
from sloserve.http.exporter import Exporter
from sloserve.metrics import GATEWAY_EXPORTS, PREFIX
from sloserve.slo.service import ServiceSpec
from sloserve.wire import Demand

BUCKET_S = 5.0
NUM_BUCKETS = 60
WINDOW_S = BUCKET_S * NUM_BUCKETS
PROMISED = ("admitted", "deferred")
LATE_FIRST_TOKEN, LATE_TOKEN = "LateFirstToken", "LateToken"
"""Why a promise that was made was missed; otherwise it is the reason why none was made."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests of one class over some time; `attained` by promise: ttft, tpot, all."""

    eligible: int
    attained: dict[str, int]

    @property
    def attainment(self) -> float | None:
        """Share that kept every promise; None when nobody was eligible."""
        return self.attained["all"] / self.eligible if self.eligible else None


class _Recent:
    """Counts in buckets of 5 s, over 5 minutes."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[int]] = {}

    def add(self, now_s: float, judgement: Judgement) -> None:
        number = int(now_s / BUCKET_S)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = [0, 0, 0, 0]
            for old in [n for n in self._buckets if n <= number - NUM_BUCKETS]:
                del self._buckets[old]
        bucket[0] += 1
        bucket[1] += judgement.ttft_kept
        bucket[2] += judgement.tpot_kept
        bucket[3] += judgement.attained

    def tally(self, now_s: float) -> Tally:
        least = int(now_s / BUCKET_S) - NUM_BUCKETS
        live = [b for number, b in self._buckets.items() if number > least]
        sums = [sum(b[i] for b in live) for i in range(4)]
        return Tally(sums[0], dict(zip(PROMISES, sums[1:], strict=True)))


class Ledger:
    """Everything the gateway counts, in one exporter."""

    def __init__(self, spec: ServiceSpec, *, clock: Callable[[], float]) -> None:
        self.exporter = Exporter(GATEWAY_EXPORTS)
        self._clock = clock
        self._service, self._model = spec.name, spec.model.served_name
        self._recent: dict[str, _Recent] = {}
        self._demand: dict[str, RecentDemand] = {}
        self.apply(spec)

    def apply(self, spec: ServiceSpec) -> None:
        """Show the targets in force; counters of new classes appear at 0."""
        self._service, self._model = spec.name, spec.model.served_name
        self.exporter.set("sloserve_config_generation", value=spec.generation)
        declare_classes(spec, self.exporter, counters=PREFIX)
        for slo_class in spec.classes:
            self._start(slo_class.name)

    def _start(self, slo_class: str) -> None:
        self._recent.setdefault(slo_class, _Recent())
        self._demand.setdefault(slo_class, RecentDemand(self._clock))
        labels = (self._service, self._model, slo_class)
        for reason in (*(r.value for r in BINDING), LATE_FIRST_TOKEN, LATE_TOKEN):
            self.exporter.add("sloserve_slo_missed_total", *labels, reason, amount=0)
        for name in ("sloserve_gateway_ttft_seconds", "sloserve_gateway_tpot_seconds"):
            self.exporter.observe(name, *labels, value=0, times=0)
        for name in ("sloserve_gateway_added_seconds", "sloserve_gateway_hops"):
            self.exporter.observe(name, self._service, value=0, times=0)
        pending = ("sloserve_gateway_pending", self._service, slo_class)
        self.exporter.set(*pending, value=self.exporter.value(*pending))

    def arrived(self, slo_class: str, *, num_prompt: int) -> None:
        """A request of a class is here; `num_prompt` tokens as estimated."""
        self._demand[slo_class].arrived(num_prompt)

    def ended(
        self,
        slo_class: str,
        *,
        decision: str,
        outcome: str,
        reason: Reason,
        judgement: Judgement,
        num_output: int = 0,
    ) -> None:
        """
        One request is over; `slo_class` is empty when it was refused before it had one.

        `num_output` tokens went to the client.
        """
        labels = (self._service, self._model, slo_class)
        if slo_class in self._demand:
            self._demand[slo_class].ended(
                decision=decision, outcome=outcome, reason=reason, num_output=num_output
            )
        add = self.exporter.add
        add("sloserve_requests_total", *labels, decision, outcome, reason.value)
        if not judgement.eligible:
            return
        add("sloserve_slo_requests_total", *labels)
        if judgement.ttft_kept:
            add("sloserve_slo_attained_total", *labels, "ttft")
        if judgement.tpot_kept:
            add("sloserve_slo_attained_total", *labels, "tpot")
        if judgement.attained:
            add("sloserve_slo_attained_total", *labels, "all")
        else:
            late = LATE_TOKEN if judgement.ttft_kept else LATE_FIRST_TOKEN
            was_late = outcome in ("finished", "cancelled") and decision in PROMISED
            bound = late if was_late else reason.value or late
            add("sloserve_slo_missed_total", *labels, bound)
        self._recent[slo_class].add(self._clock(), judgement)

    def latencies(self, slo_class: str, *, ttft_s: float | None, mean_tpot_s: float | None) -> None:
        """What a client saw of one answer."""
        labels = (self._service, self._model, slo_class)
        if ttft_s is not None:
            self.exporter.observe("sloserve_gateway_ttft_seconds", *labels, value=ttft_s)
        if mean_tpot_s is not None:
            self.exporter.observe("sloserve_gateway_tpot_seconds", *labels, value=mean_tpot_s)

    def passed(self, *, added_s: float, num_hops: int) -> None:
        """A request's first byte went out: what the gateway itself took, and replicas asked."""
        self.exporter.observe("sloserve_gateway_added_seconds", self._service, value=added_s)
        self.exporter.observe("sloserve_gateway_hops", self._service, value=num_hops)

    def pending(self, slo_class: str, change: int) -> None:
        """A request begins (1) or ends (-1) waiting here for a replica."""
        labels = ("sloserve_gateway_pending", self._service, slo_class)
        self.exporter.set(*labels, value=self.exporter.value(*labels) + change)

    def num_pending(self, slo_class: str) -> int:
        """Requests of a class that wait here now."""
        return int(self.exporter.value("sloserve_gateway_pending", self._service, slo_class))

    def inflight(self, num_requests: int, states: dict[str, int], *, report_age_s: float) -> None:
        """Refresh the gauges of requests forwarded, of replicas by state, of the oldest report."""
        age = ("sloserve_gateway_report_age_seconds", self._service)
        self.exporter.set(*age, value=report_age_s)
        self.exporter.set("sloserve_gateway_inflight", self._service, value=num_requests)
        for state, count in states.items():
            self.exporter.set("sloserve_gateway_replicas", self._service, state, value=count)

    def since_start(self, slo_class: str) -> Tally:
        """The class's counters."""
        labels = (self._service, self._model, slo_class)
        value = self.exporter.value
        attained = {
            p: math.floor(value("sloserve_slo_attained_total", *labels, p)) for p in PROMISES
        }
        return Tally(math.floor(value("sloserve_slo_requests_total", *labels)), attained)

    def last_minute(self, slo_class: str) -> Demand:
        """What the class asked for in the last minute."""
        demand = self._demand.get(slo_class)
        return demand.last_minute() if demand is not None else Demand()

    def recent(self, slo_class: str) -> Tally:
        """The class's last five minutes."""
        recent = self._recent.get(slo_class) or _Recent()
        return recent.tally(self._clock())
