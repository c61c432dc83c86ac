"""From a service spec to a runner, its tokenizer and its step times. Runs beside the server."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sloserve.engine.clock import RealClock
from sloserve.engine.ngram import NgramDrafter
from sloserve.engine.runner import ModelFacts, Runner
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.sim import SimRunner, sim_facts
from sloserve.engine.tokenizer import ByteTokenizer, Tokenizer
from sloserve.frontend.grammars import Grammars, make_grammars
from sloserve.perf import OnlineCorrection, Profile, load_profile, save_profile
from sloserve.perf.fit import MAX_MAPE, MAX_P95, BadFit
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import RunnerDrafts, Scheduler, Speculating
from sloserve.slo.service import ServiceSpec
from sloserve.slo.sources import ModelSource, SourceKind, parse_source
from sloserve.tools.formats import FORMATS, ToolFormat, format_of

log = logging.getLogger(__name__)

OnPhase = Callable[[str, int, int], None]
"""Called with a phase's name, bytes done and bytes in total (0: not counted)."""

SIM_PROFILE = "h200"
SIM_BLOCK_SIZE = 16
SIM_KV_TOKENS = 131_072
SIM_MODEL_LEN = 32_768


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to be run."""

    runner: Runner
    tokenizer: Tokenizer
    profile: Profile
    defaults: SamplingParams
    grammars: Grammars

    @property
    def facts(self) -> ModelFacts:
        """What the loop must know of the model."""
        return self.runner.facts


def tool_format(named: str | None, tokenizer: Tokenizer) -> ToolFormat | None:
    """How the model writes calls: as the flag says, or as its chat template teaches it."""
    return FORMATS[named] if named is not None else format_of(tokenizer.template)


def is_simulated(spec: ServiceSpec) -> bool:
    """Whether the model is `builtin://sim`, which needs no torch."""
    return parse_source(spec.model.source).kind is SourceKind.SIM


def load(spec: ServiceSpec, *, profile: str | None, on_phase: OnPhase) -> Loaded:
    """
    The model of the spec, with its step-time profile: the file or builtin name that was given,
    else the one measured here before, else one measured now.

    Takes seconds to minutes. Raises BadInput, NotFound and Failed that say what to do.
    """
    source = parse_source(spec.model.source, field="model.source")
    if source.kind is SourceKind.SIM:
        return _simulated(spec, source, profile)
    return _with_torch(spec, source, profile, on_phase)


def _simulated(spec: ServiceSpec, source: ModelSource, given: str | None) -> Loaded:
    truth = load_profile(source.profile or given or SIM_PROFILE)
    believed = load_profile(given) if given else truth
    facts = sim_facts(
        name=spec.model.served_name,
        max_model_len=spec.model.max_model_len or SIM_MODEL_LEN,
        block_size=SIM_BLOCK_SIZE,
        num_blocks=(truth.kv_tokens or SIM_KV_TOKENS) // SIM_BLOCK_SIZE,
        hardware=f"simulated {truth.hardware}",
        steps_aside=True,
    )
    runner = SimRunner(truth.step, facts, RealClock())
    tokenizer = ByteTokenizer()
    grammars = make_grammars(tokenizer, facts)
    return Loaded(runner, tokenizer, believed, SamplingParams(), grammars)


def _with_torch(
    spec: ServiceSpec, source: ModelSource, given: str | None, on_phase: OnPhase
) -> Loaded:
    from sloserve.model.load import load_model
    from sloserve.model.lora.config import checked_adapter
    from sloserve.model.sources import resolve_source

    stored = load_profile(given) if given else None
    fetching = "fetching the model"
    on_phase(fetching, 0, 0)
    path = resolve_source(
        source,
        spec.model.revision,
        on_bytes=lambda done, total: on_phase(fetching, done, total),
    )
    drafter = None
    if draft_source := draft_model(spec):
        fetching_drafter = "fetching the draft model"
        drafter = resolve_source(
            draft_source, on_bytes=lambda done, total: on_phase(fetching_drafter, done, total)
        )
    adapters = {
        adapter.name: resolve_source(
            adapter.source,
            on_bytes=partial(on_phase, f"fetching the adapter {adapter.name}"),
            check=checked_adapter,
        )
        for adapter in spec.model.lora
    }
    runner, tokenizer = load_model(
        path,
        model=spec.model,
        engine=spec.engine,
        on_phase=on_phase,
        drafter=drafter,
        adapters=adapters,
    )
    profile = stored or _measured(spec, runner, on_phase)
    grammars = make_grammars(tokenizer, runner.facts)
    return Loaded(runner, tokenizer, profile, runner.defaults, grammars)


def _measured(spec: ServiceSpec, runner: Runner, on_phase: OnPhase) -> Profile:
    """
    The cached profile of this model on this machine, or a new one.

    A machine too busy to measure on is measured twice; what is doubtful then still serves (the
    online correction mends it), but is not kept.
    """
    from sloserve.model.profile import cache_path, cached_profile, measure, profile_key

    facts = runner.facts
    model, threads = profile_key(spec, facts, drafter=draft_model(spec))
    cached = cached_profile(facts, model=model, threads=threads)
    if cached is not None:
        return cached

    def told(done: int, total: int, what: str) -> None:
        on_phase(f"measuring step times: batch {done} of {total}", 0, 0)

    def measured(max_mape: float, max_p95: float) -> Profile:
        return measure(
            runner,
            model=model,
            threads=threads,
            on_progress=told,
            max_mape=max_mape,
            max_p95=max_p95,
        )

    try:
        found = measured(MAX_MAPE, MAX_P95)
    except BadFit as error:
        log.warning("%s", error.message)
        found = measured(math.inf, math.inf)
        if found.mape > MAX_MAPE or found.p95 > MAX_P95:
            log.warning(
                "serving with doubtful step times, not kept: mape=%.3f p95=%.3f",
                found.mape,
                found.p95,
            )
            return found
    path = cache_path(facts, model=model, threads=threads)
    save_profile(found, path)
    log.info("step times measured: mape=%.3f p95=%.3f kept in %s", found.mape, found.p95, path)
    return found


def draft_model(spec: ServiceSpec) -> str:
    """The source of the model that writes drafts; empty: there is none."""
    speculation = spec.engine.speculation
    if speculation.mode == "Never" or speculation.drafter == "ngram":
        return ""
    return speculation.drafter


def make_speculating(spec: ServiceSpec) -> Speculating | None:
    """What gives decodes their drafts. Simulated models have no text worth drafting from."""
    if spec.engine.speculation.mode == "Never" or is_simulated(spec):
        return None
    return Speculating(
        RunnerDrafts() if draft_model(spec) else NgramDrafter(),
        max_draft_tokens=spec.engine.speculation.max_draft_tokens,
    )


def make_scheduler(spec: ServiceSpec, loaded: Loaded, *, policy: str) -> Scheduler:
    """The scheduler over a loaded model, with the limits of the spec."""
    facts, profile = loaded.facts, loaded.profile
    return Scheduler(
        make_policy(policy),
        profile.step,
        OnlineCorrection(start_margin_s=profile.p95 * profile.step.step_s(1)),
        Limits(
            block_size=facts.block_size,
            num_blocks=facts.num_blocks,
            max_running=spec.engine.max_running,
            max_batch_tokens=spec.engine.max_batch_tokens,
        ),
        new_law=LengthLaw,
        classes=spec.classes,
        max_model_len=facts.max_model_len,
        prefix_caching=spec.engine.prefix_caching,
        speculating=make_speculating(spec),
    )
