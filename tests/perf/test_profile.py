"""Profile files."""

import json
from pathlib import Path

import pytest

from sloserve.errors import BadInput, NotFound
from sloserve.perf import (
    BatchKind,
    FitError,
    Profile,
    StepModel,
    builtin_profile,
    builtin_profiles,
    load_profile,
    save_profile,
)


@pytest.fixture
def profile(true_model: StepModel) -> Profile:
    """As `sloserve profile` would write it."""
    return Profile(
        hardware="a CPU (2 threads)",
        model="builtin://tiny",
        dtype="float32",
        threads=2,
        date="2026-03-01",
        step=true_model,
        mape=0.03,
        p95=0.08,
        by_kind={BatchKind.DECODE: FitError(0.02, 0.05, 27)},
        kv_tokens=4096,
    )


def test_a_profile_comes_back_from_its_file(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "profile.json"
    save_profile(profile, path)
    assert load_profile(path) == profile
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


@pytest.mark.parametrize("name", builtin_profiles())
def test_every_builtin_profile_loads_and_tells_where_it_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile == builtin_profile(name)
    assert profile.step.step_s(1) > 0
    assert profile.mape < 0.25
    assert profile.source


def test_a_gpu_is_quicker_than_the_one_before_it() -> None:
    h200, a100 = builtin_profile("h200").step, builtin_profile("a100").step
    assert h200.step_s(32, context=32 * 1024) < a100.step_s(32, context=32 * 1024)


def test_an_unknown_name_or_path_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"a100.*h200"):
        builtin_profile("h900")
    with pytest.raises(NotFound, match=r"no profile file .*h200.*sloserve profile --output"):
        load_profile(tmp_path / "h900.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": {"w": 0.01}}, "coefficients: has no 'a0'"),
        ({"coefficients": {"w": -1, "a0": 0, "c1": 0, "a1": 0, "b": 0, "d": 0}}, "w: .*is -1"),
        ({"coefficients": {"w": 0, "a0": 0, "c1": 0, "a1": 0, "b": 0, "d": 0}}, "take no time"),
        ({"coefficients": [1, 2]}, "coefficients: must be an object"),
        ({"hardware": 3}, "hardware: must be text, is 3"),
        ({"threads": 1.5}, "threads: must be a whole number"),
        ({"error": {"mape": "low"}}, "mape: must be a number"),
        ({"error": None}, "error: must be an object"),
    ],
)
def test_a_wrong_field_is_named(
    profile: Profile, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "profile.json"
    save_profile(profile, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=message):
        load_profile(path)


@pytest.mark.parametrize("text", ["", "not json", "[1]", "{}", '{"w": NaN}'])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"profile\.json"):
        load_profile(path)


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="can't be read"):
        load_profile(tmp_path)


def test_a_place_that_can_not_be_written_is_named(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="can't be written"):
        save_profile(profile, tmp_path / "file" / "profile.json")
