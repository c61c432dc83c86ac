"""`sloserve profile`: a real model on this machine, and what is refused before one is loaded."""

import argparse
from pathlib import Path

import pytest

from sloserve.errors import BadInput, NotFound
from sloserve.model.load import load_runner
from sloserve.model.profile import Grid, measure
from sloserve.model.profile_command import print_profile, run_profile
from sloserve.model.sources import resolve_source
from sloserve.perf import BatchKind, load_profile, save_profile
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
