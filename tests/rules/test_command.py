"""`sloserve rules`, as a user runs it."""

from pathlib import Path

import pytest
import yaml

from sloserve.cli import main

MANIFEST = Path(__file__).resolve().parents[2] / "examples" / "sloservice.yaml"


def test_rules_go_to_stdout_or_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rules", "-f", str(MANIFEST)]) == 0
    told = capsys.readouterr().out
    path = tmp_path / "rules.yaml"
    assert main(["rules", "-f", str(MANIFEST), "-o", str(path)]) == 0
    assert path.read_text() == told
    groups = yaml.safe_load(told)["groups"]
    assert [g["name"] for g in groups][-1] == "sloserve/assistant/serving"


def test_flags_choose_namespace_ladder_and_labels(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--namespace", "team-a", "--no-slow-burn", "--label", "team=serving"]
    flags += ["--runbook-url", "https://wiki.example/runbook"]
    assert main(["rules", "-f", str(MANIFEST), *flags]) == 0
    told = capsys.readouterr().out
    assert "SloserveSlowBurn" not in told
    rules = [r for g in yaml.safe_load(told)["groups"] for r in g["rules"] if "alert" in r]
    assert all(r["labels"]["team"] == "serving" for r in rules)
    assert all(r["labels"]["namespace"] == "team-a" for r in rules)
    urls = {r["annotations"]["runbook_url"].partition("#")[0] for r in rules}
    assert urls == {"https://wiki.example/runbook"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-f", "nowhere.yaml"], 2, "can't read nowhere.yaml"),
        (["-f", str(MANIFEST), "--label", "serving"], 2, "write NAME=VALUE"),
        (["-f", str(MANIFEST), "-o", "/nonexistent/rules.yaml"], 1, "can't write"),
    ],
)
def test_what_can_t_be_done_is_one_line(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rules", *arguments]) == code
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
