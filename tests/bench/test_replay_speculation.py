"""The replay with speculation: recorded acceptance, the ladder of rates, prompts, served steps."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bench import replay_speculation_fixed
from bench.replay_calibrate import sample_of_step
from bench.replay_speculation import (
    LOWEST,
    TEXTS,
    Curve,
    Windows,
    capacity,
    rate_of,
    scenario_for,
    systems_of,
    walk,
)
from bench.replay_speculation_pairs import summary
from bench.replay_speculation_real import LEAST_RATE, Copying, at_rates, take_turns
from bench.replay_speculation_summary import best_settings, capacities
from bench.replay_speculation_table import capacity as measured_capacity
from bench.replay_speculation_table import told_capacity
from bench.replay_speculation_targets import ACCEPTANCE, REAL, REPLAY, RESULTS, TARGETS
from bench.replay_speculation_ways import WAYS, Series, Way

from sloserve import cli
from sloserve.frontend import loading
from sloserve.load.options import read_service
from sloserve.load.reader import from_arrivals
from sloserve.load.summary import ALL
from sloserve.load.trace import Arrival
from sloserve.perf import load_profile
from sloserve.planner.policies import make_policy
from sloserve.simulate.acceptance import AcceptanceProfile, read_acceptance
from sloserve.simulate.cluster import Cluster
from sloserve.simulate.settings import SimSettings
from sloserve.simulate.truth import EXACT
from sloserve.slo import SloClass, Stage, Ttft
from sloserve.slo.service import EngineSpec, ModelSpec, ServiceSpec, SpeculationSpec

PATIENT = {"any": SloClass("any", Ttft(target_s=600.0), (Stage("decode", 60.0),))}
USUAL, TIGHT = TARGETS["usual"], TARGETS["tight"]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_has_a_record_and_drafts_are_righter_when_the_model_is_greedy(text: str) -> None:
    written = json.loads((ACCEPTANCE / f"{text}.json").read_text())
    profile = read_acceptance(ACCEPTANCE / f"{text}.json")
    assert profile.is_recorded
    assert len(profile.texts[""]) == 24
    first = written["alphas"][0]
    assert first > 0.6 if text.endswith("-0") else first < 0.4


def busy_s(width: int, acceptance: AcceptanceProfile | None) -> float:
    """Seconds of steps that keep `width` streams going: who ends makes room for the next."""
    settings = SimSettings(
        policy="fcfs",
        model=load_profile(str(RESULTS / "profile.json")).step,
        truth=EXACT,
        max_running=width,
        acceptance=acceptance,
        propose_s=10e-6,
        drain_s=1e6,
    )
    arrivals = [Arrival(1e-6 * n, 8, 200, "any") for n in range(max(12, 4 * width))]
    cluster = Cluster(PATIENT, settings, new_policy=lambda: make_policy("fcfs"))
    cluster.run(from_arrivals("steady", arrivals, duration_s=10.0))
    return cluster.replicas[0].busy_s


@pytest.mark.parametrize("text", ["trace-0.7", "copying-0.7"])
def test_drafts_seldom_right_cost_by_need_next_to_nothing_at_any_width(text: str) -> None:
    """Bar: 0.97 of no drafts. The step model is exact here, asking is paid for."""
    acceptance = read_acceptance(ACCEPTANCE / f"{text}.json")
    for width in (1, 4, 8, 16):
        assert busy_s(width, None) / busy_s(width, acceptance) > 0.985


def test_greedy_drafts_gain_by_need_at_one_stream() -> None:
    acceptance = read_acceptance(ACCEPTANCE / "copying-0.json")
    assert busy_s(1, None) / busy_s(1, acceptance) > 1.3


def test_the_tight_promises_are_the_usual_ones_with_every_tpot_halved_as_often() -> None:
    usual, tight = (read_service(targets.manifest) for targets in (USUAL, TIGHT))
    factor = usual.classes[0].stages[0].tpot_s / tight.classes[0].stages[0].tpot_s
    assert factor in (2, 4, 8)
    for loose, close in zip(usual.classes, tight.classes, strict=True):
        tpot_s = loose.stages[0].tpot_s / factor
        assert close == replace(loose, stages=(Stage("decode", tpot_s),))
    assert replace(tight, classes=usual.classes) == usual


class Falling:
    """Windows whose attainment falls by 5 points a step from step `held` on."""

    def __init__(self, held: int = 10) -> None:
        self.asked: list[int] = []
        self.held = held

    def of(self, name: str, scenario: object, *, rate: float, repeat: int) -> dict[str, Any]:
        step = int(name.split()[-2])
        self.asked.append(step)
        kept = 100 - 5 * max(0, step - self.held)
        return {"rate": rate, "classes": {"all": [100, kept, 0.0]}}


@pytest.mark.parametrize("first", [3, 12, 13, 20])
def test_the_ladder_is_climbed_until_attainment_falls_through_the_target(first: int) -> None:
    curve = Curve(USUAL, "now", "mix", "trace-0", systems_of(USUAL)[-1], "sloserve")
    windows: Any = Falling()
    points = walk(curve, object(), windows, repeats=2, first=first)  # type: ignore[arg-type]
    assert {12, 13, USUAL.common["mix"]} <= set(points)
    found = capacity(points)
    assert found is not None
    assert rate_of(12) <= found <= rate_of(13)


def test_a_target_missed_at_every_rate_ends_the_search_at_the_lowest_and_is_told_as_none() -> None:
    curve = Curve(TIGHT, "now", "mix", "trace-0", systems_of(TIGHT)[0], "fcfs:max_batch_tokens=32")
    windows: Any = Falling(held=LOWEST - 3)
    points = walk(curve, object(), windows, repeats=1, first=LOWEST + 4)  # type: ignore[arg-type]
    assert min(points) == LOWEST
    assert len(windows.asked) == 6  # five steps down, and where goodput is compared
    assert capacity(points) == 0.0
    row = {"load": "mix", "text": "trace-0", "system": "fcfs", "setting": "s", "capacity": 0.0}
    need = row | {"system": "sloserve, by need", "capacity": 2.0}
    assert capacities([row, need])[-1] == "| mix, trace-0 | none | 2.00 | - | - | - |"


def test_windows_are_kept_and_without_drafts_stand_for_every_text(tmp_path: Path) -> None:
    off, need = systems_of(USUAL)[2], systems_of(USUAL)[-1]
    names = {
        Curve(USUAL, "now", "mix", text, system, "sloserve").name(3, 0)
        for text in ("trace-0", "code-0")
        for system in (off, need)
    }
    assert len(names) == 3
    curve = Curve(USUAL, "now", "conversation", "copying-0", need, "sloserve")
    scenario = scenario_for(curve, duration_s=4.0)
    assert scenario.settings.acceptance is not None
    older = scenario_for(replace(curve, machine="replayed"), duration_s=4.0)
    assert older.settings.model.b > 5 * scenario.settings.model.b  # attention was not compiled
    windows = Windows(tmp_path / "windows.json")
    row = windows.of("one", scenario, rate=2.0, repeat=0)
    assert row["accepted"] > 0
    windows.save()
    again = Windows(tmp_path / "windows.json")
    nothing = replace(scenario, classes={})  # would fail if it were simulated
    assert again.of("one", nothing, rate=2.0, repeat=0) == json.loads(json.dumps(row))


def test_the_best_setting_of_a_policy_counts() -> None:
    rows = [
        {"load": "mix", "text": "trace-0", "system": system, "setting": setting, "capacity": rate}
        for system, setting, rate in (
            ("fcfs", "a", 1.0),
            ("fcfs", "b", 2.0),
            ("fcfs, fixed", "a", None),
            ("sloserve, off", "s", 3.0),
            ("sloserve, by need", "s", 3.6),
        )
    ]
    assert [row["setting"] for row in best_settings(rows)] == ["b", "a", "s", "s"]
    assert capacities(best_settings(rows))[-1] == (
        "| mix, trace-0 | 2.00 | - | 3.00 | 3.60 | 1.80x | 1.20x | - |"
    )


def test_copying_prompts_say_a_passage_over_and_over() -> None:
    prompts = Copying(range(1000, 2000), 0.0, True, 4)

    def prompt(number: int, tokens: int) -> list[int]:
        body = prompts.body(model="m", number=number, prompt_tokens=tokens, output_tokens=7)
        fields = json.loads(body)
        assert (fields["min_tokens"], fields["temperature"]) == (7, 0)
        said: list[int] = fields["prompt"]
        return said

    long = prompt(1, 130)
    assert len(long) == 130
    assert long[:90] == long[40:]
    assert len(set(long)) == 40
    assert prompt(1, 130) == long != prompt(2, 130)


def test_real_windows_take_turns_until_every_capacity_is_bracketed() -> None:
    ways = [Way("copying-0", "fcfs", "Never"), Way("copying-0", "sloserve", "Auto")]
    limits = dict(zip(ways, (2.0, 4.5), strict=True))
    asked: list[tuple[str, float]] = []

    def measure(way: Way, rate: float) -> dict[str, Any]:
        asked.append((way.policy, rate))
        kept = min(1.0, 0.9 + 0.1 * (limits[way] - rate))
        return {"measured": {"rate": rate, "classes": {"all": {"attainment": kept}}}}

    found = take_turns(ways, [2.5, 3.0], measure)
    assert [policy for policy, _ in asked[:4]] == ["fcfs", "sloserve", "fcfs", "sloserve"]
    for way, results in found:
        rate = measured_capacity(results, "measured")
        assert rate == pytest.approx(limits[way], abs=0.01)
        offered = sorted(result["measured"]["rate"] for result in results)
        assert any(low <= rate < high < 1.26 * low for low, high in pairwise(offered))


def test_a_search_in_real_time_ends_where_windows_would_hold_hardly_a_request() -> None:
    way = Way("copying-0", "fcfs", "Fixed")

    def measure(way: Way, rate: float) -> dict[str, Any]:
        assert rate >= LEAST_RATE
        return {"measured": {"rate": rate, "classes": {"all": {"attainment": 0.5}}}}

    [(_, results)] = take_turns([way], [0.3], measure)
    assert [result["measured"]["rate"] for result in results] == [0.3, 0.2, 0.13]
    assert told_capacity(results, "measured") == "below 0.13"


def test_given_rates_are_measured_in_their_order_the_ways_by_turns() -> None:
    ways = [Way("copying-0", *way.split("-")) for way in WAYS]
    asked: list[tuple[float, str]] = []

    def measure(way: Way, rate: float) -> dict[str, Any]:
        asked.append((rate, f"{way.policy}-{way.mode}"))
        return {"measured": {"rate": rate, "classes": {"all": {"attainment": 0.95}}}}

    found = at_rates(ways, [1.5, 0.5], measure)
    assert asked == [(rate, way) for rate in (1.5, 0.5) for way in WAYS]
    assert [way for way, _ in found] == ways
    assert told_capacity(found[0][1], "measured") == "above 1.50"


def test_windows_measured_before_are_found_and_others_never_take_their_place() -> None:
    series = Series(USUAL, "conversation", 120.0, 1)
    kept = [
        path for path in REAL.glob("*.json") if "-sloserve-" in path.name or "-fcfs-" in path.name
    ]
    usual = [path for path in kept if not path.stem.endswith("s")]
    assert usual
    for path in usual:
        key = json.loads(path.read_text())["key"]
        way = Way(key["text"], key["policy"], key["mode"])
        assert series.file(f"{way.name}-{key['rate']:.2f}") == path
        assert series.key(way, key["rate"]) == key
    others = (
        replace(series, load="mix"),
        replace(series, targets=TIGHT),
        replace(series, window_s=60.0),
    )
    assert len({one.file("summary") for one in (series, *others)}) == 4


@pytest.mark.parametrize("way", WAYS)
def test_a_way_is_simulated_with_the_drafts_it_is_served_with(way: str) -> None:
    one = Way("copying-0", *way.split("-"))
    series = Series(USUAL, "conversation", 4.0, 1)
    scenario = series.scenario(profile=RESULTS / "profile.json", host=REPLAY / "host-served.json")
    settings = series.served(scenario, one).settings
    assert settings.policy == one.policy
    assert (settings.acceptance is None) == (one.mode == "Never")
    assert settings.fixed_drafts == (4 if one.mode == "Fixed" else None)


def test_the_chunk_of_fcfs_is_the_one_that_was_best_where_it_was_simulated(tmp_path: Path) -> None:
    def chunk(series: Series, mode: str) -> str:
        return series.setting(Way("copying-0", "fcfs", mode))

    usual = Series(USUAL, "conversation", 120.0, 1)
    assert chunk(usual, "Never") == "fcfs:max_batch_tokens=192"  # as the replay had it
    assert chunk(usual, "Fixed").partition("=")[2] in map(str, USUAL.wide_chunks)

    tight = replace(usual, targets=replace(TIGHT, folder=tmp_path))
    with pytest.raises(SystemExit, match="copying-0, fcfs\\? simulate that first"):
        chunk(tight, "Never")
    row = {"load": "conversation", "text": "copying-0", "system": "fcfs"}
    rows = [row | {"setting": name, "capacity": rate} for name, rate in (("a", 1.0), ("b", 1.1))]
    (tmp_path / "summary-lean.json").write_text(json.dumps({"curves": rows}))
    assert chunk(tight, "Never") == "b"
    with pytest.raises(SystemExit, match="fcfs, fixed"):
        chunk(tight, "Fixed")


def test_fixed_drafts_are_put_in_place_before_the_command_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "make_speculating", loading.make_speculating)  # put back later
    spec = ServiceSpec(
        name="s",
        model=ModelSpec(source="builtin://sim", served_name="s"),
        engine=EngineSpec(speculation=SpeculationSpec(mode="Never")),
        classes=tuple(PATIENT.values()),
        default_class="any",
    )
    loaded = loading.load(spec, profile=None, on_phase=lambda name, done, total: None)
    assert loading.make_scheduler(spec, loaded, policy="fcfs").speculating is None

    def command() -> int:
        drafting = loading.make_scheduler(spec, loaded, policy="fcfs").speculating
        assert drafting is not None
        return 7

    monkeypatch.setattr(cli, "main", command)
    assert replay_speculation_fixed.main() == 7


def test_a_served_step_counts_the_drafts_it_verified() -> None:
    step: dict[str, Any] = {
        "num_rows": 2,
        "num_decodes": 2,
        "num_prefill_tokens": 0,
        "num_draft_tokens": 6,
        "context": 500,
        "pairs": 0.0,
        "period_s": 0.02,
        "actual_s": 0.02,
    }
    sample = sample_of_step(step)
    assert sample is not None
    assert sample.num_tokens == 8
    del step["num_draft_tokens"]  # windows of before there were drafts
    sample = sample_of_step(step)
    assert sample is not None
    assert sample.num_tokens == 2


def test_pairs_of_windows_are_summed_up_by_their_differences() -> None:
    def pair(never: float, auto: float) -> dict[str, dict[str, Any]]:
        told = {"Never": never, "Auto": auto}
        return {
            mode: {"measured": {"classes": {ALL: {"attainment": share}}}}
            for mode, share in told.items()
        }

    told = summary([pair(0.90, 0.92), pair(0.80, 0.86)])
    assert told == ("kept: 85.0% without drafts, 89.0% by need: +4.0 points, standard error 2.0")
    assert summary([pair(0.90, 0.88)]).endswith("by need: -2.0")
