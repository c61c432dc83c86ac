import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from sloserve.errors import BadInput
from sloserve.simulate.command import add_simulate_arguments, run_simulate

MANIFEST = """
apiVersion: sloserve.io/v1alpha1
kind: SLOService
metadata: {name: assistant}
spec:
  model: {source: "builtin://sim?profile=h200", maxModelLen: 2048}
  sloClasses:
    - {name: chat, ttft: {target: 500ms}, tpot: 50ms}
    - {name: code, ttft: {slowdown: 5, floor: 200ms}, tpot: 50ms}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "service.yaml"
    path.write_text(MANIFEST)
    return str(path)


def simulate(*arguments: str) -> int:
    parser = ArgumentParser()
    add_simulate_arguments(parser)
    return run_simulate(parser.parse_args(["--plain", *arguments]))


def test_simulate_reports_every_policy_at_every_rate(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, picture = tmp_path / "r.json", tmp_path / "r.png"
    arguments = ["-f", manifest, "--trace", "builtin:coding", "--shares", "coding:code=1"]
    arguments += ["--shares", "chat=1,code=1", "--duration", "5", "--rate", "4,12"]
    arguments += ["--policy", "sloserve fcfs:max_batch_tokens=512"]
    arguments += ["--json", str(report), "--png", str(picture)]
    assert simulate(*arguments) == 0
    written = json.loads(report.read_text())
    assert [w["policy"] for w in written["windows"]] == ["sloserve"] * 2 + [
        "fcfs:max_batch_tokens=512"
    ] * 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Azure 2023 coding" in printed
    assert "dropped: longer than 2048 tokens" in printed


def test_capacity_finds_the_highest_rate_of_each_policy(manifest: str, tmp_path: Path) -> None:
    report = tmp_path / "c.json"
    arguments = ["-f", manifest, "--trace", "synthetic:requests=150,prompt=900,output=20"]
    arguments += ["--policy", "fcfs", "--rate", "10", "--tolerance", "0.2", "--json", str(report)]
    assert simulate("--sweep", *arguments) == 0
    (found,) = json.loads(report.read_text())["capacities"]
    held = [rate for rate, share in found["tried"] if share >= 0.9]
    assert found["rate"] == max(r for r in held if r <= found["rate"])
    assert 5 < found["rate"] < 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "lifo"], "unknown policy 'lifo'; one of sloserve"),
        (["--policy", "fcfs:max_batch_tokens=many"], "not key=number"),
        (["--policy", "fcfs:colour=1"], "does not take these"),
        (["--profile", "abacus"], "abacus"),
        (["--rate", "-1"], "--rate"),
        (["--max-len", "10", "--trace", "builtin:coding"], "longer than 10 tokens"),
        (["--duration", "0"], "--duration"),
        (["--bias", "-1"], "--bias.*not within -0.9 to 10.0"),
        (["--noise", "nan"], "--noise.*not within"),
        (["--stragglers", "1.5"], "--stragglers.*not within"),
        (["--drift-s", "0"], "--drift-s.*not within"),
    ],
)
def test_bad_input_is_refused_by_name(manifest: str, arguments: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        simulate("-f", manifest, *arguments)


def test_steps_that_drift_break_promises_that_exact_steps_keep(
    manifest: str, tmp_path: Path
) -> None:
    def attained(*truth: str) -> int:
        out = tmp_path / "report.json"
        load = ["--trace", "synthetic:requests=300,prompt=900,output=60", "--rate", "60"]
        assert simulate("-f", manifest, *load, *truth, "--json", str(out)) == 0
        return int(json.loads(out.read_text())["windows"][0]["classes"]["all"]["attained"])

    assert attained("--exact") > attained("--noise", "0", "--stragglers", "0", "--drift", "1")


def test_a_manifest_without_step_times_asks_for_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(MANIFEST.replace("builtin://sim?profile=h200", "builtin://tiny"))
    with pytest.raises(BadInput, match="give --profile"):
        simulate("-f", str(path))
