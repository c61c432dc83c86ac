"""Speculation on the virtual clock: the real scheduler and planner, drafts right by a profile."""

import json
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from operator import mul
from pathlib import Path

import pytest

from sloserve.errors import BadInput
from sloserve.load.builtin import load_trace
from sloserve.load.report import Window
from sloserve.load.trace import Trace
from sloserve.perf import StepModel
from sloserve.planner.policies import make_policy
from sloserve.scheduler.speculating import EXPLORE_STEPS
from sloserve.simulate.acceptance import AcceptanceProfile, Recorded, constant
from sloserve.simulate.cluster import Cluster
from sloserve.simulate.command import add_simulate_arguments, run_simulate
from sloserve.simulate.settings import Lengths, SimSettings
from sloserve.simulate.truth import TruthSpec
from sloserve.slo import SloClass

MakeTrace = Callable[..., Trace]
Simulated = Callable[[Trace, SimSettings], Window]

TINY = StepModel(w=6.2e-3, a0=6.1e-5, c1=6.2e-3, a1=6.1e-5, b=1.5e-7, d=7.9e-8)
"""About the small model on a CPU with compiled attention."""
DRAFT_PRICED = StepModel(w=0.020, a0=1e-3, c1=0.0, a1=1e-3, b=1e-6, d=0.0, k2=2e-3)
"""Steps whose terms can be told apart by their sizes."""

TOLERANCE = 0.02
"""Share of requests that luck (other steps, other noise) may cost drafts by need: two of 99."""


@pytest.fixture(scope="module")
def load() -> Trace:
    shares = {"": {"chat": 0.6, "code": 0.4}}
    return load_trace("builtin:conversation", max_total_tokens=2048).classed(shares, seed=3)


@pytest.fixture
def a_tiny_replica(settings: SimSettings) -> SimSettings:
    """As `sloserve simulate` runs it: noise, lengths from the client's limit, paid proposals."""
    return replace(settings, model=TINY, truth=TruthSpec(), lengths=Lengths.LIMIT, propose_s=10e-6)


def times_of(
    classes: dict[str, SloClass], settings: SimSettings, trace: Trace
) -> tuple[list[float], SimSettings]:
    """When the tokens of a single request came."""
    cluster = Cluster(classes, settings, new_policy=lambda: make_policy(settings.policy))
    (record,) = cluster.run(trace)
    return [emission.at_s for emission in record.emissions], settings


@pytest.mark.parametrize("num", [1, 3, 8])
@pytest.mark.parametrize("alphas", [(0.7,), (0.9, 0.6, 0.3)])
def test_tokens_per_step_are_what_the_chances_say(
    a_trace: MakeTrace,
    settings: SimSettings,
    simulated: Simulated,
    alphas: tuple[float, ...],
    num: int,
) -> None:
    """1 + sum over drafts of the product of chances up to it."""
    drafted = replace(
        settings, policy="fcfs", acceptance=constant(*alphas), fixed_drafts=num, max_model_len=9000
    )
    num_output = 6000
    window = simulated(a_trace((0.0, 8, num_output), duration_s=600.0), drafted)
    expected = 1 + sum(accumulate((alphas[min(j, len(alphas) - 1)] for j in range(num)), mul))
    num_steps = int(str(window.facts["steps"])) - 1  # the prompt's
    assert num_output / num_steps == pytest.approx(expected, rel=0.05)


def test_drafts_cost_what_the_step_model_says_and_asking_for_them_its_time(
    a_trace: MakeTrace, settings: SimSettings, classes: dict[str, SloClass]
) -> None:
    drafted = replace(
        settings,
        policy="fcfs",
        model=DRAFT_PRICED,
        acceptance=constant(0.0),
        fixed_drafts=2,
        propose_s=1e-4,
    )
    trace = a_trace((0.0, 50, 3), duration_s=10.0)
    times, _ = times_of(classes, drafted, trace)
    # the second token: 51 keys, drafts 52 and 53; the last one: nothing is left to draft for
    assert times[1] - times[0] == pytest.approx(0.020 + 2 * 1e-3 + (51 + 52) * 1e-6 + 1e-4)
    assert times[2] - times[1] == pytest.approx(0.020 + 1e-3 + 52e-6)
    serial, _ = times_of(classes, replace(drafted, draft_model=True), trace)
    assert serial[1] - serial[0] == pytest.approx(0.020 + 2 * 1e-3 + 103e-6 + 2e-3)


def test_recorded_drafts_give_the_tokens_of_their_record(
    a_trace: MakeTrace, settings: SimSettings, simulated: Simulated
) -> None:
    """Nothing proposed at place 1, four right at place 2, then again from the start."""
    profile = AcceptanceProfile("made", {"": (Recorded("03", "04"),)})
    drafted = replace(settings, policy="fcfs", acceptance=profile, fixed_drafts=4)
    window = simulated(a_trace((0.0, 8, 13), duration_s=10.0), drafted)
    # tokens after each step: 1, 2, 7, 8, 13
    assert window.facts["steps"] == 5
    assert (window.facts["accepted_drafts"], window.facts["rejected_drafts"]) == (8, 0)


def test_by_need_ends_drafting_where_none_is_ever_right(
    load: Trace, a_tiny_replica: SimSettings, simulated: Simulated
) -> None:
    """Hope at first, and a look at everyone every so many steps, are all that is left."""
    window = load.at_rate(3.0).window(0.0, 25.0)
    facts = simulated(window, replace(a_tiny_replica, acceptance=constant(0.0))).facts
    looks = sum(arrival.output_tokens for arrival in window.arrivals) / EXPLORE_STEPS
    assert facts["accepted_drafts"] == 0
    assert 0 < int(str(facts["rejected_drafts"])) < 1.5 * looks


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.8])
def test_by_need_keeps_as_many_promises_as_no_drafts(
    load: Trace, a_tiny_replica: SimSettings, simulated: Simulated, acceptance: float
) -> None:
    window = load.at_rate(4.5).window(0.0, 25.0)
    off = simulated(window, a_tiny_replica).all
    need = simulated(window, replace(a_tiny_replica, acceptance=constant(acceptance))).all
    assert need.attainment >= off.attainment - TOLERANCE


def test_by_need_keeps_more_promises_where_memory_binds_and_drafts_are_right(
    load: Trace, settings: SimSettings, simulated: Simulated
) -> None:
    """Who ends sooner frees its blocks sooner."""
    window = load.at_rate(20.0).window(0.0, 10.0)
    off = replace(settings, truth=TruthSpec(), lengths=Lengths.LIMIT, num_blocks=1500)
    need = replace(off, acceptance=constant(0.8), propose_s=10e-6)
    assert simulated(window, need).all.attained > simulated(window, off).all.attained


MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {name: assistant}
spec:
  model: {source: "builtin://sim?profile=h200", maxModelLen: 2048}
  engine: {speculation: {maxDraftTokens: 3}}
  sloClasses:
    - {name: chat, ttft: {target: 500ms}, tpot: 50ms}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "service.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
def report_of(manifest: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, object], float]]:
    def run(*words: str) -> tuple[dict[str, object], float]:
        """(service as it was simulated, drafts per step)."""
        parser, out = ArgumentParser(), tmp_path / "report.json"
        add_simulate_arguments(parser)
        load = ["--trace", "synthetic:requests=40,prompt=200,output=60", "--rate", "20"]
        words = ("-f", str(manifest), "--plain", *load, *words, "--json", str(out))
        assert run_simulate(parser.parse_args(words)) == 0
        written = json.loads(out.read_text())
        facts = written["windows"][0]["facts"]
        drafted = facts["accepted_drafts"] + facts["rejected_drafts"]
        classes = {
            name: {k: v for k, v in row.items() if k != "cpu"}
            for name, row in written["windows"][0]["classes"].items()
        }
        return written["settings"]["service"] | {"classes": classes}, drafted / facts["steps"]

    return run


def test_never_is_to_the_token_what_was_simulated_before_there_were_drafts(
    report_of: Callable[..., tuple[dict[str, object], float]],
) -> None:
    plain, drafts = report_of()
    never, none = report_of("--acceptance", "0.7", "--speculation", "Never")
    assert never == plain
    assert drafts == none == 0


def test_words_of_the_engine_say_how_many_drafts_there_are(
    report_of: Callable[..., tuple[dict[str, object], float]], manifest: Path
) -> None:
    auto, by_need = report_of("--acceptance", "0.9")
    assert (auto["max_drafts"], auto["fixed_drafts"], auto["acceptance"]) == (3, None, "0.9")
    assert by_need > 0
    fixed, many = report_of("--acceptance", "0.9", "--speculation", "Fixed:6")
    assert fixed["fixed_drafts"] == 6
    assert many > by_need
    manifest.write_text(MANIFEST.replace("maxDraftTokens: 3", "mode: Never"))
    assert report_of("--acceptance", "0.9")[1] == 0
    assert report_of("--acceptance", "0.9", "--speculation", "Auto")[1] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speculation", "Auto"], "needs --acceptance"),
        (["--speculation", "Fixed:4"], "needs --acceptance"),
        (["--acceptance", "0.5", "--speculation", "Fixed"], "none of Auto, Never, Fixed:N"),
        (["--acceptance", "0.5", "--speculation", "Fixed:65"], "none of Auto, Never, Fixed:N"),
        (["--acceptance", "0.5", "--speculation", "sometimes"], "none of Auto, Never, Fixed:N"),
        (["--acceptance", "2"], "nor chances within 0 to 1"),
        (["--acceptance", "0.5", "--propose-us", "-1"], "--propose-us"),
    ],
)
def test_bad_words_are_refused(
    report_of: Callable[..., tuple[dict[str, object], float]], words: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        report_of(*words)


def test_a_draft_model_needs_its_cost_and_chances_of_its_own(
    report_of: Callable[..., tuple[dict[str, object], float]], manifest: Path, tmp_path: Path
) -> None:
    manifest.write_text(MANIFEST.replace("maxDraftTokens: 3", "drafter: 'hf://some/small'"))
    with pytest.raises(BadInput, match="k2 is 0"):
        report_of("--acceptance", "0.8")
    recorded = tmp_path / "recorded.json"
    recorded.write_text('{"requests": {"": [{"grades": "3", "rights": "1"}]}}')
    with pytest.raises(BadInput, match="recorded with n-gram drafts"):
        report_of("--acceptance", str(recorded))
