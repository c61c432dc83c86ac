"""The engine's own totals and steps, put into the exporter when somebody looks."""

import logging
from collections.abc import Callable

from sloserve.engine.runner import ModelFacts
from sloserve.engine.step_error import NUM_STEPS, step_error
from sloserve.engine.timeline import StepRecord
from sloserve.frontend.latencies import ENGINE
from sloserve.frontend.replica import Replica, Served
from sloserve.http import report
from sloserve.http.classes import declare_classes
from sloserve.http.exporter import Exporter
from sloserve.metrics import REPLICA, VLLM, Kind
from sloserve.scheduler import Counters, Scheduler, Status
from sloserve.slo.service import ServiceSpec

log = logging.getLogger(__name__)

NO_CLASS = "-"
"""The class of the replica's own first answer; it is not exported."""
VLLM_LABELS = ("model_name", "engine")


def start_series(spec: ServiceSpec, to: Exporter) -> None:
    """Every class's target lines, and every series that has no other reason to wait, at 0."""
    declare_classes(spec, to, counters="sloserve_replica_")
    for c in spec.classes:
        to.observe("sloserve_slack_seconds", c.name, value=0, times=0)
    for kind in ("prefill", "decode", "draft", "best_effort"):
        to.observe("sloserve_step_tokens", kind, value=0, times=0)
    for result in ("accepted", "rejected"):
        to.add("sloserve_draft_tokens_total", result, amount=0)
    labels = (spec.model.served_name, ENGINE)
    for metric in VLLM:
        if metric.labels == VLLM_LABELS and metric.kind is Kind.COUNTER:
            to.add(metric.name, *labels, amount=0)
        elif metric.labels == VLLM_LABELS and metric.kind is Kind.HISTOGRAM:
            to.observe(metric.name, *labels, value=0, times=0)
    for finish_reason in ("stop", "length"):
        to.add("vllm:request_success_total", *labels, finish_reason, amount=0)
    engine = spec.engine
    num_devices = engine.tensor_parallel_size if engine.device == "cuda" else 1
    to.set("sloserve_replica_devices", engine.device, value=num_devices)


class Figures:
    """Refreshes the exporter from the engine; `pump` often enough that no step is missed."""

    def __init__(
        self, replica: Replica, to: Exporter, *, emission_lag_s: Callable[[], float]
    ) -> None:
        self._replica = replica
        self._to = to
        self._emission_lag_s = emission_lag_s
        self._last_step = 0
        self._off = False
        """Whether the step model was off when somebody last looked."""
        to.set("sloserve_step_model_off", value=0)
        names = [m.name for m in (*REPLICA, *VLLM)]
        to.refresh_before(report.NAMES, self._report)
        to.refresh_before(names, self._totals)
        to.refresh_before(names, self.pump)

    def pump(self) -> None:
        """Put the steps since the last call into the histograms; the engine keeps 1024."""
        served = self._replica.loaded
        if served is None:
            return
        to, model = self._to, self._replica.spec.model.served_name
        new = served.engine.steps_since(self._last_step)
        for step in new:
            self._last_step = step.number
            to.observe("sloserve_step_seconds", value=step.period_s)
            to.observe("sloserve_plan_seconds", value=step.plan_s)
            if step.predicted_s > 0:
                ratio = step.period_s / step.predicted_s
                to.observe("sloserve_step_error_ratio", value=ratio)
            for kind, count in _tokens(step):
                if count:
                    to.observe("sloserve_step_tokens", kind, value=count)
            num_tokens = step.num_decodes + step.num_prefill_tokens + step.num_draft_tokens
            to.observe("vllm:iteration_tokens_total", model, ENGINE, value=num_tokens)

        if new:
            self._judge(served.engine.steps_since(max(0, self._last_step - NUM_STEPS)))

    def _judge(self, steps: list[StepRecord]) -> None:
        """Export whether the step model is off, and say so once in the log."""
        error = step_error(steps)
        self._to.set("sloserve_step_model_off", value=error.off)
        if error.off != self._off:
            self._off = error.off
            say, words = (log.warning, "is off") if error.off else (log.info, "fits again")
            say("the step model %s: measured over predicted is %.2f over the last %d steps",
                words, error.mean_ratio, error.num_steps)  # fmt: skip

    def _report(self) -> None:
        report.export(self._replica.report(), self._to)

    def _totals(self) -> None:
        to, told = self._to, self._replica.report()
        labels = (self._replica.spec.model.served_name, ENGINE)
        to.set("sloserve_emission_lag_seconds", value=self._emission_lag_s())
        to.set("vllm:num_requests_running", *labels, value=told.num_running)
        to.set("vllm:num_requests_waiting", *labels, value=told.num_waiting)
        used = 1 - told.free_blocks / told.total_blocks if told.total_blocks else 0.0
        to.set("vllm:kv_cache_usage_perc", *labels, value=used)
        to.set("vllm:gpu_cache_usage_perc", *labels, value=used)
        served = self._replica.loaded
        self._adapters(served)
        if served is not None:
            self._cache(served.facts, labels)
        if served is not None and served.engine.scheduler is not None:
            self._counters(served.engine.scheduler, labels)

    def _adapters(self, served: Served | None) -> None:
        standing = (Status.RUNNING, Status.WAITING)
        named = [",".join(served.engine.adapters(s)) if served else "" for s in standing]
        self._to.clear("vllm:lora_requests_info")
        num_adapters = str(len(self._replica.spec.model.lora))
        self._to.set("vllm:lora_requests_info", num_adapters, *named, value=1)

    def _cache(self, facts: ModelFacts, labels: tuple[str, str]) -> None:
        sizes = (str(facts.block_size), str(facts.num_blocks))
        self._to.set("vllm:cache_config_info", *labels, *sizes, value=1)

    def _counters(self, scheduler: Scheduler, labels: tuple[str, str]) -> None:
        to, blocks, counters = self._to, scheduler.blocks, scheduler.counters
        service, model = self._replica.spec.name, labels[0]
        by_class: dict[str, list[tuple[tuple[str, ...], int]]] = {
            "sloserve_replica_slo_requests_total": [
                ((slo_class,), n) for slo_class, n in list(counters.eligible.items())
            ],
            "sloserve_replica_slo_attained_total": list(counters.attained.items()),
            "sloserve_replica_requests_total": list(counters.ended.items()),
        }
        for name, found in by_class.items():
            for key, n in found:
                if key[0] != NO_CLASS:
                    to.total(name, service, model, *key, value=n)
        totals = {
            "vllm:num_preemptions_total": counters.num_preemptions,
            "vllm:generation_tokens_total": counters.output_tokens,
            "vllm:prefix_cache_queries_total": blocks.num_queried_tokens,
            "vllm:prefix_cache_hits_total": blocks.num_hit_tokens,
        }
        for name, value in totals.items():
            to.total(name, *labels, value=value)
        to.set("sloserve_step_correction_ratio", value=scheduler.correction.ratio)
        self._drafts(counters, labels)

    def _drafts(self, counters: Counters, labels: tuple[str, str]) -> None:
        to, drafts = self._to, "sloserve_draft_tokens_total"
        accepted, rejected = counters.accepted_drafts, counters.rejected_drafts
        to.total(drafts, "accepted", value=accepted)
        to.total(drafts, "rejected", value=rejected)
        to.total("vllm:spec_decode_num_accepted_tokens_total", *labels, value=accepted)
        to.total("vllm:spec_decode_num_draft_tokens_total", *labels, value=accepted + rejected)


def refused(replica: Replica, to: Exporter, *, reason: str, slo_class: str) -> None:
    """Count a request that never reached the engine: bad input, loading, draining."""
    spec = replica.spec
    known = slo_class if spec.slo_class(slo_class) else ""
    labels = (spec.name, spec.model.served_name, known)
    to.add("sloserve_replica_requests_total", *labels, "none", "refused", reason)


def _tokens(step: StepRecord) -> tuple[tuple[str, int], ...]:
    """A step's tokens by kind; best effort is counted among the others as well."""
    return (
        ("prefill", step.num_prefill_tokens),
        ("decode", step.num_decodes),
        ("draft", step.num_draft_tokens),
        ("best_effort", step.num_best_effort_tokens),
    )
