"""What `bench.replay_speculation --real` compares: ways to serve, and windows that are alike."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.replay_calibrate import load_host
from bench.replay_plan import load_plans, scenario_of, with_setting
from bench.replay_speculation_fixed import FIXED
from bench.replay_speculation_summary import best_settings
from bench.replay_speculation_targets import ACCEPTANCE, REPLAY, TARGETS, Targets

from sloserve.perf import load_profile
from sloserve.simulate.acceptance import read_acceptance
from sloserve.simulate.drafts import PROPOSE_US
from sloserve.simulate.run import Scenario

WAYS = ("fcfs-Never", "fcfs-Fixed", "sloserve-Never", "sloserve-Fixed", "sloserve-Auto")
"""Policy and who gets drafts: nobody, everyone, who needs them or where they pay."""
SIMULATED = {"Never": "fcfs", "Fixed": "fcfs, fixed"}
"""What `fcfs` is called where its chunks were simulated, by mode."""
MACHINES = ("lean", "now")
"""Whose simulation picks the chunk of `fcfs`: the first that there is."""
WINDOW_S = 120.0
"""The usual length; files of others are marked."""


@dataclass(frozen=True, slots=True)
class Way:
    """Prompts, a policy, and who gets drafts."""

    text: str
    policy: str
    mode: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.text}-{self.policy}-{self.mode}"


@dataclass(frozen=True, slots=True)
class Series:
    """Windows of one load under one set of promises, all of one length."""

    targets: Targets
    load: str
    window_s: float
    threads: int

    def file(self, name: str, *, folder: str = "real", kind: str = "json") -> Path:
        """Where that is kept: no two series share a file. What came first has the plain names."""
        load = "" if self.load == "conversation" else f"-{self.load}"
        length = "" if self.window_s == WINDOW_S else f"-{self.window_s:g}s"
        return self.targets.folder / f"{folder}{load}" / f"{name}{length}.{kind}"

    def key(self, way: Way, rate: float) -> dict[str, Any]:
        """What a window must have been measured with to be this one."""
        return {"windows": self.window_s, "threads": self.threads, "rate": rate} | asdict(way)

    def setting(self, way: Way) -> str:
        """
        The policy with its best setting as simulation found it: for what the replay had the
        replay's, else that of bench.replay_speculation.
        """
        if way.policy == "sloserve":
            return way.policy
        if self.targets is TARGETS["usual"] and way.mode == "Never":
            plans = load_plans(REPLAY / "plan.json")
            return next(p.setting for p in plans if (p.load, p.policy) == (self.load, way.policy))
        wanted = (self.load, way.text, SIMULATED[way.mode])
        for path in (self.targets.folder / f"summary-{machine}.json" for machine in MACHINES):
            curves = json.loads(path.read_text(encoding="utf-8"))["curves"] if path.exists() else ()
            for curve in best_settings(curves):
                if (curve["load"], curve["text"], curve["system"]) == wanted:
                    return str(curve["setting"])
        raise SystemExit(f"which chunk is best for {', '.join(wanted)}? simulate that first")

    def scenario(self, *, profile: Path, host: Path) -> Scenario:
        """Its load against a simulated service."""
        return scenario_of(
            self.load,
            manifest=self.targets.manifest,
            profile=load_profile(str(profile)),
            host=load_host(host),
            duration_s=self.window_s,
        )

    def served(self, scenario: Scenario, way: Way) -> Scenario:
        """The scenario, served that way."""
        settings = scenario.settings
        if way.mode != "Never":
            settings = replace(
                settings,
                acceptance=read_acceptance(ACCEPTANCE / f"{way.text}.json"),
                fixed_drafts=FIXED if way.mode == "Fixed" else None,
                propose_s=PROPOSE_US * 1e-6,
            )
        return with_setting(replace(scenario, settings=settings), self.setting(way))
