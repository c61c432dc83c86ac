"""What is replayed: loads, policies, rates; and what the simulator says of them beforehand."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.replay_calibrate import Host

from sloserve.load.options import LoadOptions, read_service
from sloserve.load.report import write_json
from sloserve.load.trace import parse_shares
from sloserve.perf import Profile
from sloserve.planner.policies import parse_policy
from sloserve.simulate.run import Scenario, find_capacity
from sloserve.simulate.settings import SimSettings
from sloserve.simulate.truth import TruthSpec
from sloserve.slo import SloClass
from sloserve.slo.service import ServiceSpec

SEED = 4
TARGET = 0.9
FACTORS = (0.8, 1.0, 1.2, 1.5)
"""Offered rates, in predicted capacities: about it, and 1.5 times it for the overload goal."""
COARSE = 0.06
TOLERANCE = 0.02
FINALISTS = 4
PREDICT_S = 240.0
PREDICT_REPEATS = 3

LOADS = {
    "conversation": ("builtin:conversation", ["interactive=0.3,standard=0.4,relaxed=0.3"]),
    "mix": ("builtin:mix", ["conversation:standard=0.6,relaxed=0.4", "coding:interactive=1"]),
}
"""Name -> trace and shares of the classes. In the mix, code is the interactive half."""

GRID = {
    "sloserve": ["sloserve"],
    "fcfs": [f"fcfs:max_batch_tokens={n}" for n in (64, 128, 192, 256, 384, 512, 1024, 2048)],
    "edf-drop": [
        f"edf-drop:max_batch_tokens={n},grid_tokens=32,min_batch_tokens=64,"
        f"safety={safety},alpha_s={alpha}"
        for n in (64, 96, 128, 192, 256, 512)
        for safety in (1.0, 1.2)
        for alpha in (0.0, 0.0002)
    ],
}
"""Every setting of a policy that the simulator tries; the best one is measured."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One policy on one load: its best setting, the predicted capacity, the rates to measure."""

    load: str
    policy: str
    setting: str
    capacity: float
    tried: dict[str, float]  # setting -> predicted capacity
    rates: tuple[float, ...]  # requests/s; plan.json may be given more of them by hand


def rates_about(capacity: float) -> tuple[float, ...]:
    """The rates to measure about a predicted capacity, requests/s."""
    return tuple(round(capacity * factor, 3) for factor in FACTORS)


def options_of(load: str, *, spec: ServiceSpec, duration_s: float) -> LoadOptions:
    """The load of that name, in windows of `duration_s`."""
    trace, shares = LOADS[load]
    return LoadOptions(
        trace=trace,
        shares=parse_shares(shares),
        max_total_tokens=spec.model.max_model_len,
        cut=False,
        seed=SEED,
        duration_s=duration_s,
        rates=(),
        repeats=1,
    )


def scenario_of(
    load: str, *, manifest: Path, profile: Profile, host: Host, duration_s: float
) -> Scenario:
    """The load against the simulated service."""
    spec = read_service(manifest)
    options = options_of(load, spec=spec, duration_s=duration_s)
    classes: dict[str, SloClass] = {c.name: c for c in spec.classes}
    kv_bytes, per_token = spec.engine.kv_bytes, profile.kv_bytes_per_token
    if kv_bytes is None or per_token is None:
        kv_tokens = profile.kv_tokens or 100_000
    else:
        kv_tokens = kv_bytes // per_token
    settings = SimSettings(
        policy="sloserve",
        model=profile.step,
        truth=TruthSpec(
            bias=host.bias,
            noise=host.noise,
            straggler_share=host.stragglers,
            straggler_factor=host.straggler_factor,
            drift=host.drift,
            drift_s=host.drift_s,
        ),
        num_blocks=kv_tokens // 16,
        max_running=spec.engine.max_running,
        max_batch_tokens=spec.engine.max_batch_tokens,
        max_model_len=spec.model.max_model_len or 4096,
        start_margin_s=profile.p95 * profile.step.step_s(1),
        plan_s=host.plan_s,
        way_in_s=host.way_in_s,
        way_out_s=host.way_out_s,
        seed=SEED,
    )
    trace = options.prepare(classes, default_class=spec.default_class)
    return Scenario(trace, options, classes, settings)


def with_setting(scenario: Scenario, setting: str) -> Scenario:
    """The scenario under a policy with its parameters."""
    return scenario.with_policy(*parse_policy(setting))


def plan(scenario: Scenario, load: str, policy: str, *, repeats: int) -> Planned:
    """
    The best of a policy's settings by simulated capacity: all of them searched coarsely, the
    best few again over more windows and to a finer step.

    Its capacity is then predicted on the windows that will be measured (`scenario`'s own length,
    `repeats` of them): traces are bursty, and two minutes may hold half or twice the mean rate.
    """
    measured = scenario
    options = replace(scenario.options, duration_s=PREDICT_S)
    scenario = replace(scenario, options=options)
    start = scenario.trace.rate / 4

    def capacity(setting: str, *, tolerance: float, repeats: int, start: float) -> float:
        found = find_capacity(
            with_setting(scenario, setting),
            target=TARGET,
            tolerance=tolerance,
            start=start,
            repeats=repeats,
        )
        return found.rate

    tried: dict[str, float] = {}
    for setting in GRID[policy]:
        tried[setting] = capacity(setting, tolerance=COARSE, repeats=2, start=start)
        start = tried[setting] or start
    ranked = sorted(tried, key=lambda setting: -tried[setting])
    fine = {
        setting: capacity(
            setting, tolerance=TOLERANCE, repeats=PREDICT_REPEATS, start=tried[setting] or start
        )
        for setting in ranked[:FINALISTS]
    }
    best = max(fine, key=lambda setting: fine[setting])
    found = find_capacity(
        with_setting(measured, best),
        target=TARGET,
        tolerance=TOLERANCE,
        start=fine[best],
        repeats=repeats,
    )
    return Planned(load, policy, best, found.rate, tried | fine, rates_about(found.rate))


def save_plans(path: Path, plans: Sequence[Planned], *, made: dict[str, Any]) -> None:
    """Write them, with what made them."""
    rows = [
        {
            "load": p.load,
            "policy": p.policy,
            "setting": p.setting,
            "capacity": p.capacity,
            "rates": list(p.rates),
            "tried": p.tried,
        }
        for p in plans
    ]
    write_json(path, {"made": made, "plans": rows})


def load_plans(path: Path) -> list[Planned]:
    """The plans in a file; none when there is none."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["plans"]
    return [
        Planned(r["load"], r["policy"], r["setting"], r["capacity"], r["tried"], tuple(r["rates"]))
        for r in rows
    ]
