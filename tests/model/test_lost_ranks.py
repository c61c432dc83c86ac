"""A rank that does not start, fails or is killed ends everything, and is named."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.model.parted import ENGINE, MODEL, a_config, saved

from sloserve.errors import Failed
from sloserve.model.load import load_runner
from sloserve.model.parallel import loading
from sloserve.model.parallel import ranks as ranks_module
from sloserve.model.parallel.ranks import Ranks

UNLUCKY = """
import sys
from sloserve.model import load
from sloserve.model.parallel import worker

def fails(*args, **given):
    raise OSError("the disk of this rank is gone")

load.load_runner = fails
sys.exit(worker.main(sys.argv[1:]))
"""


def test_a_process_that_does_not_start_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(a_config("llama"), tmp_path)
    monkeypatch.setattr(ranks_module, "WORKER", "sloserve.nothing_of_this_name")
    monkeypatch.setattr(ranks_module, "BLAME_S", 30.0)
    with pytest.raises(Failed, match=r"rank 1 of 2 \(process \d+\) ended with code 1"):
        load_runner(folder, model=MODEL, engine=ENGINE)


def test_a_load_that_fails_on_rank_1_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unlucky_worker.py").write_text(UNLUCKY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(ranks_module, "WORKER", "unlucky_worker")
    monkeypatch.setattr(ranks_module, "BLAME_S", 30.0)  # however slow this machine is
    started = list[Ranks]()

    def recorded(*args: Any, **given: Any) -> Ranks:
        started.append(Ranks(*args, **given))
        return started[-1]

    monkeypatch.setattr(loading, "Ranks", recorded)
    model = replace(MODEL, load_timeout_s=86_400.0)  # whoever waits for rank 1 waits for long
    folder = saved(a_config("llama"), tmp_path / "model")
    with pytest.raises(Failed, match=r"^rank 1: OSError: the disk of this rank is gone$"):
        load_runner(folder, model=model, engine=ENGINE)
    (ranks,) = started
    ranks._others[0].process.wait(30)
    assert not ranks._folder.exists()


def test_a_rank_that_is_killed_ends_every_step_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_talk: Any, a_driver: Any
) -> None:
    monkeypatch.setattr(ranks_module, "BLAME_S", 30.0)  # however slow this machine is
    runner = load_runner(saved(a_config("llama"), tmp_path), model=MODEL, engine=ENGINE)
    ranks = runner.ranks
    assert ranks is not None
    lost, heard = threading.Event(), list[str]()

    def hear(why: str) -> None:
        heard.append(why)
        lost.set()

    ranks.on_lost(hear)
    talk = a_talk([5, 6, 7], num_output=2)
    a_driver(runner).run(talk)
    ranks._others[0].process.kill()
    with pytest.raises(Failed, match=r"rank 1 of 2 \(process \d+\) was killed by signal 9"):
        a_driver(runner).run(a_talk([5, 6, 7], num_output=2))
    assert lost.wait(30)
    assert "this replica can't go on" in heard[0]
    with pytest.raises(Failed, match="was killed by signal 9"):
        a_driver(runner).run(a_talk([5, 6, 7], num_output=2))
    runner.close()
