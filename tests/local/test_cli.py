"""The command line: help, exit codes, one clear line for every failure."""

import re
import subprocess
import sys

import pytest

from sloserve.cli import COMMANDS, POLICIES, main
from sloserve.planner import policies


def run(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    script = f"{code}\nimport sys\nfrom sloserve.cli import main\nsys.exit(main({list(words)!r}))"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    told = set(re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE))
    assert set(COMMANDS) <= told


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--log-level" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["serve"], ["up"], ["gateway", "--config", "x"]])
def test_a_wrong_command_line_is_bad_input(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2


def test_help_imports_nothing_heavy() -> None:
    done = run(
        "--help",
        code="import atexit, sys\n"
        "atexit.register(lambda: print(sorted({'torch', 'fastapi', 'aiohttp', 'rich'}"
        " & set(sys.modules))))",
    )
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["bench"], "aiohttp", "bench"),
        (["gateway", "--config", "x", "--replicas", "y"], "fastapi", "gateway"),
        (["profile", "--model", "builtin://tiny"], "torch", "engine"),
        (["status"], "rich", "gateway"),
    ],
)
def test_a_missing_part_is_told_with_the_line_that_installs_it(
    command: list[str], missing: str, extra: str
) -> None:
    done = run(*command, code=f"import sys; sys.modules[{missing!r}] = None")
    assert done.returncode == 1
    assert f"needs {missing}" in done.stderr
    assert f"pip install 'sloserve[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_while_running_is_one_line_and_exit_code_1() -> None:
    done = run("status", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("sloserve: no gateway answers at http://127.0.0.1:1/v1/slo")
    assert len(done.stderr.splitlines()) == 1


def test_bad_input_is_one_line_and_exit_code_2() -> None:
    done = run("replica", "--model", "builtin://sim", "--dtype", "fp8")
    assert done.returncode == 2
    assert done.stderr.startswith("sloserve: spec.engine.dtype: is 'fp8'")
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_is_exit_code_130() -> None:
    interrupted = (
        "import sloserve.cli as cli, dataclasses\n"
        "def stop(args): raise KeyboardInterrupt\n"
        "cli.COMMANDS['status'] = dataclasses.replace(cli.COMMANDS['status'], run=stop)"
    )
    assert run("status", code=interrupted).returncode == 130


def test_the_policies_are_the_planner_s() -> None:
    assert POLICIES == policies.POLICIES
