"""
Step times, noise and the way in and out, measured on a replica that serves.

`sloserve profile` measures single batches on an idle process. Here the same coefficients are
fitted on the steps of a replica under load (`/debug/steps`: what each step held, and the time
from the end of the one before), so that planner and simulator both know what serving costs.
"""

import asyncio
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.replay_service import Running, serving

from sloserve.load.client import run_load
from sloserve.load.endpoint import Endpoint, examine
from sloserve.load.options import LoadOptions, read_service
from sloserve.load.report import write_json
from sloserve.load.trace import Arrival, Trace, parse_shares
from sloserve.perf import Profile, Sample, evaluate, fit, load_profile, save_profile
from sloserve.slo import SloClass

POLICIES = ("fcfs:max_batch_tokens=512", "fcfs:max_batch_tokens=128", "sloserve")
WINDOW_S = 40.0
RATE_SHARE = 0.35
"""Of the trace's own rate: busy, but not only long queues."""
MAX_SAMPLES = 1500
STRAGGLER = 1.3
"""A step that takes so many times what its spell's steps take is a straggler, not noise."""
SPELL_STEPS = 500
MIN_SPELL = 50
"""The mean of fewer steps says little of the spell they are from."""
NUM_IDLE = 20
LOOK_S = 4.0


@dataclass(frozen=True, slots=True)
class Host:
    """What the simulator assumes of this machine beside step times. Seconds, shares."""

    plan_s: float = 0.0  # in the step times already
    way_in_s: float = 0.002
    way_out_s: float = 0.002
    bias: float = 0.0  # of steps that are no stragglers
    noise: float = 0.03
    stragglers: float = 0.01
    straggler_factor: float = 1.5
    drift: float = 0.0
    drift_s: float = 10.0  # assumed: spells last seconds


def load_host(path: Path) -> Host:
    """The host in a file; the defaults where there is none."""
    if not path.exists():
        return Host()
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Host(**raw["host"])


async def calibrate(
    manifest: Path, *, quick: Path, profile_path: Path, host_path: Path, threads: int, log: Path
) -> None:
    """Serve under several policies with the `quick` profile, fit, and write profile and host."""
    spells: list[list[Sample]] = []
    ways_s: list[float] = []
    for policy in POLICIES:
        async with serving(
            manifest, policy=policy, profile=quick, threads=threads, log=log
        ) as service:
            ways_s += await _ways_s(service, manifest)
            steps = await _steps_under_load(service, manifest)
        samples = [s for step in steps if (s := sample_of_step(step)) is not None]
        spells += [
            samples[start : start + SPELL_STEPS] for start in range(0, len(samples), SPELL_STEPS)
        ]
    samples = thinned([s for spell in spells for s in spell])
    write_fit(samples, spells, ways_s, quick=quick, profile_path=profile_path, host_path=host_path)


def write_fit(
    samples: Sequence[Sample],
    spells: Sequence[Sequence[Sample]],
    ways_s: Sequence[float],
    *,
    quick: Path,
    profile_path: Path,
    host_path: Path,
) -> None:
    """
    Fit step times to `samples`, noise to `spells`; profile and host in files.

    Each spell holds samples of some seconds of steps, so that what changes slowly can be told from
    what changes with every step. `quick` is the profile that names the model.
    """
    found = fit(samples, max_mape=math.inf, max_p95=math.inf)
    before = evaluate(load_profile(quick).step, samples)
    old = load_profile(quick)
    save_profile(
        Profile(
            hardware=old.hardware,
            model=old.model,
            dtype=old.dtype,
            threads=old.threads,
            date=datetime.now(UTC).date().isoformat(),
            step=found.model,
            mape=found.mape,
            p95=found.p95,
            by_kind=found.by_kind,
            source=f"fitted on {len(samples)} steps of a replica under load",
            kv_tokens=old.kv_tokens,
            kv_bytes_per_token=old.kv_bytes_per_token,
        ),
        profile_path,
    )
    ratios = [
        [
            s.time_s / found.model.step_s(s.num_tokens, context=s.context, pairs=s.pairs)
            for s in spell
        ]
        for spell in spells
    ]
    way_s = statistics.median(ways_s) if ways_s else 0.004
    host = replace(noise_of(ratios), way_in_s=way_s / 2, way_out_s=way_s / 2)
    errors = {"idle profile": before.mape, "fitted": found.mape, "fitted p95": found.p95}
    kinds = {kind.value: error.mape for kind, error in found.by_kind.items()}
    write_json(
        host_path,
        {
            "host": asdict(host),
            "steps": len(samples),
            "mape": errors | kinds,
            "coefficients": asdict(found.model),
        },
    )


def sample_of_step(step: Mapping[str, Any]) -> Sample | None:
    """A step of `/debug/steps` as a sample; None for one that followed no other."""
    if not step["num_rows"] or step["period_s"] > 3 * step["actual_s"] + 0.01:
        return None
    return Sample(
        num_tokens=step["num_decodes"]
        + step.get("num_draft_tokens", 0)  # older windows had none
        + step["num_prefill_tokens"],
        context=float(step["context"]),
        pairs=float(step["pairs"]),
        time_s=step["period_s"],
    )


def thinned(samples: Sequence[Sample], *, most: int = MAX_SAMPLES) -> list[Sample]:
    """At most so many, as many of each kind of batch as there are, up to an equal share."""
    dice = random.Random(1)
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.kind.value, []).append(sample)
    share = most // max(1, len(kinds))
    return [s for own in kinds.values() for s in dice.sample(own, min(share, len(own)))]


def noise_of(spells: Sequence[Sequence[float]]) -> Host:
    """
    Bias, noise, stragglers and drift as the simulator draws them, from actual over predicted times.

    The level of a spell is its mean. Drift is how levels differ, beyond what the mean of so many
    noisy steps would differ anyway (the between-group part of a one-way analysis of variance).
    """
    spells = [spell for spell in spells if len(spell) >= MIN_SPELL]
    levels = [statistics.mean(spell) for spell in spells]
    steps = [x / level for spell, level in zip(spells, levels, strict=True) for x in spell]
    chance = statistics.mean(
        level**2 * statistics.pvariance(steps) / len(spell)
        for spell, level in zip(spells, levels, strict=True)
    )
    drift_variance = max(0.0, statistics.pvariance(levels) - chance)
    calm = [x for x in steps if x < STRAGGLER]
    wild = [x for x in steps if x >= STRAGGLER]
    usual = statistics.mean(calm)
    mean_level = statistics.mean(levels)
    return Host(
        bias=mean_level * usual - 1,
        noise=statistics.pstdev(calm) / usual,
        stragglers=len(wild) / len(steps),
        straggler_factor=statistics.mean(wild) / usual if wild else 1.5,
        drift=math.sqrt(drift_variance) / mean_level,
    )


def _classes(manifest: Path) -> dict[str, SloClass]:
    return {c.name: c for c in read_service(manifest).classes}


async def _steps_under_load(service: Running, manifest: Path) -> list[dict[str, Any]]:
    """Every step of `_load`; the replica keeps the latest thousand only, so it is asked often."""
    seen: dict[int, dict[str, Any]] = {}

    async def look() -> None:
        while True:
            seen.update({step["number"]: step for step in await service.steps()})
            await asyncio.sleep(LOOK_S)

    looking = asyncio.create_task(look())
    try:
        await _load(service, manifest)
    finally:
        looking.cancel()
    seen.update({step["number"]: step for step in await service.steps()})
    return [seen[number] for number in sorted(seen)]


async def _load(service: Running, manifest: Path) -> None:
    """The mix for a while: every kind of batch occurs."""
    spec = read_service(manifest)
    classes = _classes(manifest)
    shares = parse_shares(
        [f"{label}:{','.join(f'{name}=1' for name in classes)}" for label in
         ("conversation", "coding")]
    )  # fmt: skip
    options = LoadOptions(
        "builtin:mix", shares, spec.model.max_model_len, False, 1, WINDOW_S, (), 1
    )
    trace = options.prepare(classes, default_class=spec.default_class)
    endpoint = Endpoint(service.url, spec.model.served_name)
    await run_load(
        service.session,
        endpoint,
        options.window(trace, rate=RATE_SHARE * trace.rate, repeat=0),
        prompts=await examine(service.session, endpoint, seed=1),
        classes=classes,
        drain_s=30.0,
    )


async def _ways_s(service: Running, manifest: Path) -> list[float]:
    """Client's time of single idle requests beyond the step that answered them (seconds)."""
    spec = read_service(manifest)
    endpoint = Endpoint(service.url, spec.model.served_name)
    arrivals = tuple(Arrival(0.2 * i, 32, 1, spec.default_class) for i in range(NUM_IDLE))
    seen = {step["number"] for step in await service.steps()}
    prompts = await examine(service.session, endpoint, seed=2)
    seen |= {step["number"] for step in await service.steps()}
    records, _ = await run_load(
        service.session,
        endpoint,
        Trace("idle", arrivals, 0.2 * NUM_IDLE),
        prompts=prompts,
        classes=_classes(manifest),
        drain_s=10.0,
    )
    steps = [step for step in await service.steps() if step["number"] not in seen]
    took_s = [r.emissions[0].at_s - r.sent_s for r in records if r.emissions]
    if not steps or not took_s:
        return []
    step_s = statistics.median(step["period_s"] for step in steps)
    return [max(0.0, s - step_s) for s in took_s]
