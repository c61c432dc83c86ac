"""`sloserve profile`: a real model on this machine, and what is refused before one is loaded."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from sloserve.engine.clock import VirtualClock
from sloserve.engine.runner import ModelFacts
from sloserve.engine.sim import SimRunner
from sloserve.errors import BadInput, NotFound
from sloserve.frontend import loading
from sloserve.model import profile_command
from sloserve.model.load import load_runner
from sloserve.model.profile import Grid, measure
from sloserve.model.profile_command import print_profile, profile_model, run_profile
from sloserve.model.sources import resolve_source
from sloserve.perf import BatchKind, StepModel, load_profile, save_profile
from sloserve.slo.flags import with_flags

SMALL = Grid(
    widths=(1, 2, 4),
    contexts=(16, 48, 96),
    chunks=(16, 32),
    priors=(0, 16),
    repeats=2,
    budget_s=60.0,
)


def arguments(**given: object) -> argparse.Namespace:
    """What the command line gives, with nothing but `given` set."""
    return argparse.Namespace(**{"config": None, "output": None, **given})


def test_the_model_that_ships_can_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = with_flags(
        None,
        arguments(
            model="builtin://tiny", threads=1, kv_size="64Mi", max_model_len=256, dtype="float32"
        ),
    )
    runner = load_runner(resolve_source(spec.model.source), model=spec.model, engine=spec.engine)
    profile = measure(
        runner,
        model="builtin://tiny",
        threads=1,
        grid=SMALL,
        max_mape=float("inf"),  # other work on this machine is not what is tested
        max_p95=float("inf"),
    )
    assert set(profile.by_kind) == set(BatchKind)
    assert profile.step.step_s(1) > 0
    width = {"float32": 4, "bfloat16": 2}[profile.dtype]  # "auto": as this CPU has it
    assert profile.kv_bytes_per_token == 5 * 2 * 2 * 64 * width
    path = tmp_path / "tiny.json"
    save_profile(profile, path)
    assert load_profile(path) == profile
    print_profile(profile, path)
    shown = capsys.readouterr().out
    assert "one decode at 256 tokens" in shown
    assert all(kind in shown for kind in ("decode", "prefill", "mixed", "all"))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_replica_finds_what_the_command_has_measured(
    num_ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOSERVE_CACHE", str(tmp_path))
    spec = with_flags(None, arguments(model="builtin://tiny", threads=6))
    spec = replace(spec, engine=replace(spec.engine, tensor_parallel_size=num_ranks))
    facts = ModelFacts(
        name="m", vocab_size=256, max_model_len=8192, eos_ids=(0,), block_size=16,
        num_blocks=8192, kv_bytes_per_token=1024, dtype="float32", device="cpu",
        hardware="a simulated CPU", tensor_parallel_size=num_ranks,
    )  # fmt: skip
    clock = VirtualClock()
    step = StepModel(w=0.004, a0=2e-5, c1=0.0025, a1=6e-5, b=8e-8, d=5e-9)
    runner = SimRunner(step, facts, clock)

    def load(*args: object, **given: object) -> SimRunner:
        torch.set_num_threads(6 // num_ranks)  # as loading does: those of this rank
        return runner

    monkeypatch.setattr(profile_command, "load_runner", load)
    monkeypatch.setattr(profile_command, "measure", partial(measure, clock=clock.now_s))
    profile, path = profile_model(spec)
    assert list((tmp_path / "profiles").iterdir()) == [path]
    measured_s = clock.now_s()
    assert loading._measured(spec, runner, lambda phase, done, total: None) == profile
    assert clock.now_s() == measured_s  # nothing was measured again
    assert profile.threads == 6


def test_a_simulated_model_has_nothing_to_measure() -> None:
    with pytest.raises(BadInput, match=r"step times are a profile already"):
        run_profile(arguments(model="builtin://sim?profile=h200"))


def test_a_missing_model_or_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent' does not exist"):
        run_profile(arguments(model=f"file://{tmp_path}/absent"))
    with pytest.raises(NotFound, match="no manifest"):
        run_profile(arguments(config=tmp_path / "absent.yaml"))


@pytest.mark.parametrize("text", ["{", "- a list", "kind: Pod"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(BadInput):
        run_profile(arguments(config=path))
