"""What the page is told: pure values."""

import json
from typing import Any

import pytest

from sloserve.local.overview import Overview
from sloserve.local.picture import picture
from sloserve.local.risk import Trouble, find, follow
from sloserve.local.scene import Scene
from sloserve.local.steps import NUM_STEPS, StepLog

NOW_S, WALL_S = 1000.0, 1.7e9


def missed(**reasons: int) -> dict[tuple[str, str, str], float]:
    return {("sloserve_slo_missed_total", "chat", word): n for word, n in reasons.items()}


def look(scene: Scene, *, now_s: float = NOW_S) -> dict[str, Any]:
    """Troubles are followed, and the picture goes over the wire."""
    found = find(
        scene.overview, was_ready=scene.was_ready, history=scene.history, steps=scene.steps
    )
    scene.troubles = follow(scene.troubles, found, now_s=now_s)
    told: dict[str, Any] = json.loads(json.dumps(picture(scene, now_s=now_s, wall_s=WALL_S)))
    return told


def test_before_the_gateway_answers_the_processes_say_what_they_do() -> None:
    scene = Scene("demo", service="demo")
    scene.progress["replica-0"] = "loading weights: 3 of 7 MB"
    told = look(scene)
    assert (told["phase"], told["verdict"]["title"]) == ("starting", "Starting")
    assert told["verdict"]["text"] == "replica-0: loading weights: 3 of 7 MB."
    assert told["classes"] == told["replicas"] == told["troubles"] == []


def test_a_service_that_was_never_ready_loads_and_is_not_in_trouble(
    scene: Any, replica_row: Any
) -> None:
    world = scene(replicas=(replica_row("r0", state="loading", total_blocks=0),))
    world.was_ready = False
    told = look(world)
    assert (told["phase"], told["verdict"]["level"]) == ("loading", "busy")


def test_nobody_asked_is_neither_good_nor_bad(scene: Any) -> None:
    told = look(scene())
    assert (told["verdict"]["level"], told["classes"][0]["state"]) == ("idle", "idle")
    assert told["classes"][0]["attainment"] is None
    assert told["classes"][0]["rates"]["goodput"] is None


def test_kept_promises_are_good(scene: Any, class_row: Any) -> None:
    told = look(scene(class_row("chat", judged=100, kept=96), class_row("code", judged=4, kept=4)))
    assert told["verdict"]["level"] == "good"
    assert told["verdict"]["text"].startswith("100 of 104 requests")
    assert [c["state"] for c in told["classes"]] == ["kept", "kept"]


def test_a_missed_promise_tells_which_since_when_and_what_binds(scene: Any, class_row: Any) -> None:
    world = scene(class_row("chat", judged=100, kept=88), class_row("code", judged=9, kept=9))
    world.history.add(missed(TTFT=0, KV=0), NOW_S - 100)
    world.history.add(missed(TTFT=10, KV=2), NOW_S - 1)
    look(world, now_s=NOW_S - 60)
    told = look(world)
    verdict = told["verdict"]
    assert (verdict["level"], verdict["title"]) == ("bad", "chat misses its promise")
    assert verdict["text"].startswith(
        "88 % of the promised 95 % kept in five minutes: 12 of 100 missed. What binds: TTFT (10 of"
    )
    assert verdict["sinceMs"] == round((WALL_S - 60) * 1e3)
    assert told["classes"][0]["missedBy"] == {"TTFT": 10, "KV": 2}
    assert [c["state"] for c in told["classes"]] == ["bad", "kept"]


def test_a_few_misses_are_a_warning(scene: Any, class_row: Any) -> None:
    told = look(scene(class_row("chat", judged=10, kept=8)))
    assert told["verdict"]["level"] == told["classes"][0]["state"] == "warning"
    assert "may be chance" in told["verdict"]["text"]


def test_trouble_that_eases_keeps_its_time_and_trouble_that_ends_does_not(
    scene: Any, class_row: Any
) -> None:
    world = scene(class_row("chat", judged=100, kept=88))
    look(world, now_s=NOW_S - 60)
    calm: Overview = scene(class_row("chat", judged=100, kept=97)).overview
    few: Overview = scene(class_row("chat", judged=50, kept=46)).overview
    world.overview = few
    told = look(world, now_s=NOW_S - 30)
    assert (told["verdict"]["level"], told["verdict"]["sinceMs"]) == (
        "warning",
        round((WALL_S - 30) * 1e3),
    )
    world.overview = calm
    assert look(world, now_s=NOW_S - 20)["troubles"] == []
    world.overview = few
    assert look(world)["verdict"]["sinceMs"] == round(WALL_S * 1e3)


def test_a_class_that_is_asked_for_and_admits_nothing_is_at_risk(
    scene: Any, class_row: Any
) -> None:
    asked = class_row("chat", judged=10, kept=10, frontier=None)
    told = look(scene(asked))
    assert told["verdict"]["title"] == "chat admits nothing now"
    assert look(scene(class_row("chat", frontier=None)))["verdict"]["level"] == "idle"


def test_the_worst_is_told_first(scene: Any, class_row: Any, replica_row: Any) -> None:
    silent = replica_row("r1", state="unknown", problem="can't connect")
    world = scene(class_row("chat", judged=100, kept=50), replicas=(replica_row("r0"), silent))
    told = look(world)
    assert [t["level"] for t in told["troubles"]] == ["bad", "warning"]
    assert told["troubles"][1]["title"] == "r1 does not report"
    assert told["replicas"][1]["problem"] == "can't connect"


def test_a_replica_that_stands_still_is_told(scene: Any, told_steps: Any) -> None:
    world = scene()
    world.steps["r0:1"].hear(told_steps(1, stalled=True))
    told = look(world)
    assert (told["verdict"]["level"], told["verdict"]["title"]) == ("bad", "r0 stands still")
    assert told["replicas"][0]["stalled"] is True


def test_a_step_model_that_is_off_is_told(scene: Any, told_steps: Any) -> None:
    world = scene()
    error = {"num_steps": 200, "mean_ratio": 1.5, "off": True}
    world.steps["r0:1"].hear(told_steps(1, error=error))
    told = look(world)
    assert told["verdict"]["title"] == "r0 misjudges its steps"
    assert "1.50 times as long" in told["verdict"]["text"]


@pytest.mark.parametrize("gone", ["gateway", "replicas"])
def test_a_service_that_was_ready_and_is_gone_is_bad(
    gone: str, scene: Any, replica_row: Any
) -> None:
    world = scene(replicas=(replica_row("r0", state="loading"),))
    if gone == "gateway":
        world.overview = None
    told = look(world)
    assert (told["phase"], told["verdict"]["level"]) == ("serving", "bad")


def test_a_class_that_missed_is_not_called_kept_while_all_drains(
    scene: Any, class_row: Any
) -> None:
    world = scene(class_row("chat", judged=100, kept=50))
    world.draining = True
    told = picture(world, now_s=NOW_S, wall_s=WALL_S)
    assert told["verdict"]["level"] == "busy"
    assert told["classes"][0]["state"] == "bad"


def test_a_share_is_never_rounded_up_to_the_objective(scene: Any, class_row: Any) -> None:
    told = look(scene(class_row("chat", judged=10_000, kept=9899, objective=0.99)))
    assert told["verdict"]["text"].startswith("98.9 % of the promised 99 %")


def test_what_a_lost_gateway_told_last_stays_and_is_called_old(scene: Any) -> None:
    world = scene()
    assert look(world)["fresh"] is True
    world.overview, world.latest = None, world.overview
    told = look(world)
    assert told["fresh"] is False
    assert [c["name"] for c in told["classes"]] == ["chat"]


def test_draining_is_no_trouble(scene: Any) -> None:
    world = scene()
    world.draining = True
    told = picture(world, now_s=NOW_S, wall_s=WALL_S)
    assert (told["phase"], told["verdict"]["level"]) == ("draining", "busy")
    assert told["verdict"]["text"].startswith("4 under way")


def test_replicas_show_what_they_admit_per_class_and_their_steps(
    scene: Any, told_steps: Any
) -> None:
    world = scene()
    world.steps["r0:1"].hear(told_steps(7, 8))
    (replica,) = look(world)["replicas"]
    assert replica["frontier"] == {"chat": [1, 850], "code": None}
    assert replica["steps"] == [[7, 10.0, 12.0, 20, 3, 5], [8, 10.0, 12.0, 20, 3, 5]]
    assert replica["stepRatio"] == 1.2
    assert (replica["freeBlocks"], replica["totalBlocks"]) == (75, 100)


def test_events_come_latest_first_with_the_time_of_day(scene: Any) -> None:
    world = scene()
    world.note("replica-0 is ready", now_s=NOW_S - 5)
    world.note("replica-1 is ready", now_s=NOW_S)
    assert look(world)["events"] == [
        {"number": 2, "atMs": round(WALL_S * 1e3), "line": "replica-1 is ready"},
        {"number": 1, "atMs": round((WALL_S - 5) * 1e3), "line": "replica-0 is ready"},
    ]


def test_steps_are_heard_piece_by_piece_and_a_restart_begins_anew(told_steps: Any) -> None:
    log = StepLog()
    log.hear(told_steps(1, 2))
    assert log.path(last=9) == "/debug/steps?last=9&after=2"
    log.hear(told_steps(num_steps=2))
    log.hear(told_steps(*range(3, 400)))
    assert [log.steps[0].number, log.steps[-1].number] == [400 - NUM_STEPS, 399]
    log.hear(told_steps(1))
    assert [step.number for step in log.steps] == [1]


@pytest.mark.parametrize("raw", [None, [], {}, {"steps": [{}]}, {"steps": []}])
def test_what_are_no_steps_is_refused_and_changes_nothing(raw: Any, told_steps: Any) -> None:
    log = StepLog()
    log.hear(told_steps(1))
    with pytest.raises(ValueError, match="not a replica's steps"):
        log.hear(raw)
    assert len(log.steps) == 1


def test_following_does_not_mix_up_what_the_troubles_are_about() -> None:
    old = follow({}, [Trouble("class a", "bad", "t", "x")], now_s=1.0)  # type: ignore[arg-type]
    new = follow(old, [Trouble("class b", "bad", "t", "x")], now_s=2.0)  # type: ignore[arg-type]
    assert [t.since_s for t in new.values()] == [2.0]
