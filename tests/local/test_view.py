"""What a person sees."""

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from sloserve.errors import Failed
from sloserve.local.overview import parse_overview, with_names
from sloserve.local.scene import Scene
from sloserve.local.view import PlainView, print_overview, summary, tables

TALLY = {"eligible": 200, "attained": 190, "ttftKept": 195, "tpotKept": 195, "attainment": 0.95}
RAW: dict[str, Any] = {
    "service": "assistant",
    "model": "tiny",
    "generation": 3,
    "draining": False,
    "inflight": 4,
    "pending": 1,
    "defaultClass": "chat",
    "classes": [
        {
            "name": "chat",
            "ttft": {"slowdown": 5, "floorMs": 200},
            "stages": [{"name": "thinking", "tpotMs": 50}, {"name": "answer", "tpotMs": 100}],
            "objective": 0.99,
            "frontier": {"minTokens": 1, "maxTokens": 850},
            "pending": 1,
            "last5m": TALLY,
            "sinceStart": TALLY,
            "lastMinute": {"arrived": 30},
        },
        {
            "name": "code",
            "ttft": {"targetMs": 1500},
            "stages": [{"name": "decode", "tpotMs": 50}],
            "objective": 0.95,
            "frontier": None,
            "pending": 0,
            "last5m": TALLY | {"attainment": None, "eligible": 0},
            "sinceStart": TALLY | {"attainment": None, "eligible": 0},
            "lastMinute": {"arrived": 0},
        },
    ],
    "replicas": [
        {
            "address": "127.0.0.1:5001",
            "replica": "replica-0",
            "state": "ready",
            "problem": "",
            "inflight": 4,
            "running": 3,
            "waiting": 1,
            "freeBlocks": 25,
            "totalBlocks": 100,
            "generation": 3,
        },
        {
            "address": "127.0.0.1:5002",
            "replica": "127.0.0.1:5002",
            "state": "unknown",
            "problem": "can't connect",
            "inflight": 0,
        },
    ],
}


def printed(*things: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    for thing in things:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_overview_is_read_with_what_is_missing() -> None:
    overview = parse_overview(RAW)
    chat, code = overview.classes
    assert (chat.ttft, chat.tpot) == ("5x >=200ms", "50ms, 100ms")
    assert chat.frontier == (1, 850)
    assert (chat.ttft_target_s, chat.tpot_targets_s) == (None, (0.05, 0.1))
    assert (chat.num_recent, chat.num_recent_kept, chat.num_arrived) == (200, 190, 30)
    assert (code.ttft, code.tpot, code.frontier) == ("1.5s", "50ms", None)
    assert overview.num_ready == 1
    assert overview.replicas[1].total_blocks == 0


def test_a_silent_replica_has_its_name_and_loads_until_it_was_ready_once() -> None:
    address = "127.0.0.1:5002"
    overview, names = parse_overview(RAW), {address: "replica-1", "127.0.0.1:5001": "other"}
    told, silent = with_names(overview, names, starting={address}).replicas
    assert (told.name, told.state) == ("replica-0", "ready")
    assert (silent.name, silent.state, silent.problem) == ("replica-1", "loading", "")
    gone = with_names(overview, names, starting=()).replicas[1]
    assert (gone.name, gone.state, gone.problem) == ("replica-1", "unknown", "can't connect")


def test_an_empty_frontier_admits_nothing() -> None:
    raw = copy.deepcopy(RAW)
    raw["classes"][0]["frontier"] = {"minTokens": 1, "maxTokens": 0}
    assert parse_overview(raw).classes[0].frontier is None


@pytest.mark.parametrize("raw", [None, [], {}, {"service": "x"}, RAW | {"classes": [{}]}])
def test_something_else_is_not_taken_for_an_overview(raw: Any) -> None:
    with pytest.raises(Failed, match="not a sloserve gateway's overview"):
        parse_overview(raw)


def test_the_tables_show_promises_attainment_frontier_and_replicas() -> None:
    scene = Scene("assistant at http://127.0.0.1:8080/v1", parse_overview(RAW))
    scene.progress["replica-1"] = "loading weights: 3 of 7 MB"
    text = printed(tables(scene))
    for words in ("chat *", "95.0%", "99.0%", "1-850", "none", "75% of 100",
                  "unknown", "replica-1: loading weights: 3 of 7 MB"):  # fmt: skip
        assert words in text


def test_status_prints_the_same_tables() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_overview(console, parse_overview(RAW))
    assert isinstance(console.file, io.StringIO)
    assert "generation 3: 4 in flight, 1 held" in console.file.getvalue()
    assert "replica-0" in console.file.getvalue()


def test_where_there_is_no_terminal_a_phase_is_told_once_and_a_summary_sometimes() -> None:
    scene = Scene("assistant")
    console = Console(file=io.StringIO(), width=200)
    view = PlainView(console, scene)
    for num_mb in (1, 2, 3):
        scene.progress["replica-0"] = f"loading weights: {num_mb} of 7 MB"
        view.show(100.0 + num_mb)
    scene.overview = parse_overview(RAW)
    view.show(140.0)
    view.show(141.0)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == ["replica-0: loading weights: 1 of 7 MB", summary(parse_overview(RAW))]
