"""Promises kept and broken, counted by emission in this replica (`design` rules: `docs`)."""

from collections.abc import Sequence
from enum import StrEnum

from sloserve.engine.events import Chunk
from sloserve.errors import Reason
from sloserve.frontend.replica import Clock, Replica
from sloserve.http.exporter import Exporter
from sloserve.slo import Decision, Promise, SloClass, TokenDeadlines, answer_due_s
from sloserve.slo.service import ServiceSpec

ENGINE = "0"
"""The `engine` label of the vllm:* names: one engine per replica."""


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


class Track:
    """One sequence as it was emitted."""

    def __init__(self, promise: Promise, *, arrival_s: float) -> None:
        self.deadlines = TokenDeadlines(promise, arrival_s=arrival_s)
        self.stages: list[int] = []
        self.first_in_time = False
        self.rest_in_time = True
        self.first_slack_s = 0.0
        self.last_slack_s = 0.0
        self.last_emitted_s = arrival_s

    def emitted(self, chunk: Chunk) -> int:
        """Account a chunk; the number of tokens new in it."""
        num_new = chunk.num_output - len(self.stages)
        for _ in range(num_new):
            self._emitted(chunk.emitted_s, chunk.stage)
        return num_new

    def _emitted(self, at_s: float, stage: int) -> None:
        deadlines = self.deadlines
        deadlines.stage = stage
        self.last_slack_s = deadlines.due_s - at_s
        in_time = deadlines.emit(at_s, stage=stage)
        if not self.stages:
            self.first_in_time, self.first_slack_s = in_time, self.last_slack_s
        else:
            self.rest_in_time = self.rest_in_time and in_time
        self.stages.append(stage)
        self.last_emitted_s = at_s


class Account:
    """
    One request in the replica's counters: each is counted once, at its end.

    Eligible is every request whose class is known, less those that the client cancelled while
    every due time so far was kept. Declined on a hop that is not the last is the gateway's
    business: not eligible here.
    """

    def __init__(
        self, replica: Replica, to: Exporter, *, promise: Promise, arrival_s: float,
        streamed: bool, last_hop: bool, num_sequences: int,
    ) -> None:  # fmt: skip
        self._to = to
        self._clock: Clock = replica.clock
        self._service = replica.spec.name
        self._model = replica.spec.model.served_name
        self._promise = promise
        self._arrival_s = arrival_s
        self._streamed = streamed
        self._last_hop = last_hop
        self.tracks = [Track(promise, arrival_s=arrival_s) for _ in range(num_sequences)]
        self._decided_s = arrival_s
        self._decision: Decision | None = None
        self._reason = Reason.NONE

    def decided(self, decision: Decision, reason: Reason) -> None:
        """The promise's fate is known."""
        self._decision, self._reason = decision, reason
        self._decided_s = self._clock()

    def emitted(self, index: int, chunk: Chunk) -> int:
        """Account a chunk of sequence `index`; the number of tokens new in it."""
        track = self.tracks[index]
        num_before, before_s = len(track.stages), track.last_emitted_s
        num_new = track.emitted(chunk)
        if num_new and num_before:
            gap_s = (chunk.emitted_s - before_s) / num_new
            name = "vllm:inter_token_latency_seconds"
            self._to.observe(name, self._model, ENGINE, value=gap_s, times=num_new)
        if num_new:
            name = "vllm:generation_tokens_total"
            self._to.add(name, self._model, ENGINE, amount=num_new)
        if chunk.finish_reason is not None:
            name = "vllm:request_success_total"
            self._to.add(name, self._model, ENGINE, chunk.finish_reason)
        return num_new

    def ended(self, outcome: Outcome, reason: Reason = Reason.NONE, *, num_prompt: int) -> None:
        """Count the request."""
        slo_class = self._promise.slo_class
        labels = (self._service, self._model, slo_class)
        decision = self._decision.value if self._decision else "none"
        why = (reason or self._reason).value
        self._to.add("sloserve_replica_requests_total", *labels, decision, outcome.value, why)
        if self._eligible(outcome):
            self._to.add("sloserve_replica_slo_requests_total", *labels)
            for promise, kept in self._kept(outcome):
                name = "sloserve_replica_slo_attained_total"
                self._to.add(name, *labels, promise, amount=float(kept))
        for track in self.tracks:
            if track.stages:
                name = "sloserve_slack_seconds"
                self._to.observe(name, slo_class, value=track.first_slack_s)
                if len(track.stages) > 1:
                    self._to.observe(name, slo_class, value=track.last_slack_s)
        if outcome is Outcome.FINISHED:
            self._latencies(num_prompt)

    def _eligible(self, outcome: Outcome) -> bool:
        if self._decision is Decision.DECLINED:
            return self._last_hop
        if outcome is Outcome.CANCELLED:
            now_s = self._clock()
            return any(not t.deadlines.kept or t.deadlines.due_s < now_s for t in self.tracks)
        return outcome is not Outcome.REFUSED

    def _kept(self, outcome: Outcome) -> list[tuple[str, bool]]:
        promised = self._decision in (Decision.ADMITTED, Decision.DEFERRED)
        if not promised or outcome is not Outcome.FINISHED:
            return [("ttft", False), ("tpot", False), ("all", False)]
        if self._streamed:
            ttft = all(t.first_in_time for t in self.tracks)
            tpot = all(t.rest_in_time for t in self.tracks)
            return [("ttft", ttft), ("tpot", tpot), ("all", ttft and tpot)]
        whole = all(
            t.last_emitted_s
            <= answer_due_s(self._promise, arrival_s=self._arrival_s, stages=t.stages)
            for t in self.tracks
        )
        return [("ttft", whole), ("tpot", whole), ("all", whole)]

    def _latencies(self, num_prompt: int) -> None:
        labels = (self._model, ENGINE)
        self._to.add("vllm:prompt_tokens_total", *labels, amount=num_prompt)
        for track in self.tracks:
            first_s, n = track.deadlines.first_emitted_s, len(track.stages)
            if first_s is None:
                continue
            last_s = track.last_emitted_s
            seconds = {
                "vllm:time_to_first_token_seconds": first_s - self._arrival_s,
                "vllm:e2e_request_latency_seconds": last_s - self._arrival_s,
                "vllm:request_queue_time_seconds": self._decided_s - self._arrival_s,
                "vllm:request_prefill_time_seconds": first_s - self._decided_s,
                "vllm:request_decode_time_seconds": last_s - first_s,
                "vllm:request_inference_time_seconds": last_s - self._decided_s,
            }
            if n > 1:
                tpot_s = (last_s - first_s) / (n - 1)
                seconds["vllm:request_time_per_output_token_seconds"] = tpot_s
            for name, value in seconds.items():
                self._to.observe(name, *labels, value=max(0.0, value))


def refused(replica: Replica, to: Exporter, reason: Reason, slo_class: str) -> None:
    """Count a request that never became one: bad input, loading, draining."""
    spec = replica.spec
    known = slo_class if spec.slo_class(slo_class) else ""
    to.add(
        "sloserve_replica_requests_total",
        spec.name,
        spec.model.served_name,
        known,
        "none",
        Outcome.REFUSED.value,
        reason.value,
    )


def declare_classes(spec: ServiceSpec, to: Exporter) -> None:
    """Counters of every class at 0, target lines: when a class appears, and at the start."""
    for name in ("sloserve_slo_target_seconds", "sloserve_slo_objective_ratio"):
        to.clear(name)
    for c in spec.classes:
        export_targets(spec, c, to)
        labels = (spec.name, spec.model.served_name, c.name)
        to.add("sloserve_replica_slo_requests_total", *labels, amount=0)
        for promise in ("ttft", "tpot", "all"):
            to.add("sloserve_replica_slo_attained_total", *labels, promise, amount=0)


def export_targets(spec: ServiceSpec, slo_class: SloClass, to: Exporter) -> None:
    """The target lines of one class."""
    ttft = slo_class.ttft
    ttft_s = ttft.target_s if ttft.target_s is not None else ttft.floor_s
    targets: Sequence[tuple[str, float]] = (
        ("ttft", ttft_s),
        ("tpot", slo_class.tightest_stage_tpot_s),
    )
    for promise, target_s in targets:
        name = "sloserve_slo_target_seconds"
        to.set(name, spec.name, slo_class.name, promise, value=target_s)
    name = "sloserve_slo_objective_ratio"
    to.set(name, spec.name, slo_class.name, value=slo_class.objective)
