"""The boards: built, committed, carried, and fit for an operator on call."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dashboards.generate import generated
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from sloserve.rules.boards import BOARDS, board_text, service_board_text
from sloserve.rules.kubernetes import boards_config_map, service_board_config_map
from sloserve.slo import parse_service


def panels(board: Any) -> list[Any]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@pytest.fixture(params=BOARDS)
def board(request: pytest.FixtureRequest) -> Any:
    """Each board that travels with the package."""
    return json.loads(board_text(request.param))


def test_what_is_committed_is_what_is_built(root: Path) -> None:
    differ = [
        name
        for name, text in generated().items()
        if not (root / name).is_file() or (root / name).read_text() != text
    ]
    assert differ == [], "run: make generate"


def test_a_board_has_a_fixed_uid_links_and_its_variables(board: Any) -> None:
    assert board["uid"].startswith("sloserve-")
    assert board["tags"] == ["sloserve"]
    assert board["templating"]["list"][0]["type"] == "datasource"
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["allValue"] == ".*"
            assert variable["datasource"]["uid"] == "${datasource}"


def test_a_panel_says_what_it_answers_has_a_unit_and_no_edge_of_a_bucket(board: Any) -> None:
    titles = [panel["title"] for panel in panels(board)]
    assert len(titles) == len(set(titles))
    for panel in panels(board):
        assert len(panel["description"]) > 20
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(chosen_units(panel)), panel["title"]
        for target in panel["targets"]:
            assert not re.search(r"\ble\s*=", target["expr"])
            assert "avg(histogram_quantile" not in target["expr"]


def chosen_units(panel: Any) -> list[str]:
    """The units of a panel: one, or one per column and axis."""
    overrides = panel["fieldConfig"]["overrides"]
    own = [p["value"] for o in overrides for p in o["properties"] if p["id"] == "unit"]
    if panel["type"] == "table":
        assert len(own) == len(panel["targets"]), panel["title"]
        return own
    if panel["type"] == "heatmap":
        return [panel["options"]["yAxis"]["unit"]]
    return [panel["fieldConfig"]["defaults"]["unit"], *own]


def test_every_unit_is_one_that_grafana_knows(board: Any) -> None:
    known = {value for name, value in vars(units).items() if name[0].isupper()}
    known |= {"none", "dateTimeFromNow"}
    for panel in panels(board):
        assert set(chosen_units(panel)) <= known, panel["title"]


def test_grafanas_own_schema_reads_the_whole_board_and_gives_it_back(board: Any) -> None:
    read = Dashboard.from_json(board)
    again = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(read))
    assert again == board
    assert board["schemaVersion"] >= 36
    assert {panel["type"] for panel in board["panels"]} <= {
        "row", "timeseries", "stat", "heatmap", "table",
    }  # fmt: skip


def test_what_a_panel_refers_to_is_there(board: Any) -> None:
    variables = {v["name"] for v in board["templating"]["list"]} | {"__rate_interval"}
    for panel in board["panels"]:
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(refs) == len(set(refs))
        text = json.dumps([panel.get("targets"), panel["title"], panel.get("repeat")])
        assert set(re.findall(r"\$(\w+)", text)) <= variables, panel["title"]
        for change in panel.get("transformations", ()):
            told = {f"Value #{ref}" for ref in refs} & change["options"].get(
                "renameByName", {}
            ).keys()
            assert len(told) == len(refs) or change["id"] != "organize", panel["title"]


def test_a_number_is_red_only_where_that_was_decided(board: Any) -> None:
    for panel in panels(board):  # without steps Grafana paints everything above 80 red
        if panel["type"] == "stat":
            first, *more = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            assert first["value"] is None
            assert first["color"] == "text" if not more else more[0]["value"] is not None


def test_rows_are_full_and_the_first_fits_on_a_screen(board: Any) -> None:
    by_height: dict[int, int] = {}
    for panel in panels(board):
        at = panel["gridPos"]
        by_height[at["y"]] = by_height.get(at["y"], 0) + at["w"]
    assert set(by_height.values()) == {24}
    assert max(p["gridPos"]["h"] for p in panels(board)) <= 9


def test_panels_stand_side_by_side_and_never_overlap(board: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_first_row_tells_which_promise_since_when_and_what_binds() -> None:
    board = json.loads(board_text("slo"))
    assert board["panels"][0]["type"] == "row"
    first = board["panels"][1]
    renamed = first["transformations"][1]["options"]["renameByName"]
    assert {"Class", "Within objective until", "What binds", "TTFT kept, 1 h"} <= {
        *renamed.values()
    }
    assert first["gridPos"]["y"] == 1


def test_latency_panels_show_the_measured_and_the_target() -> None:
    for panel in panels(json.loads(board_text("latency"))):
        if panel["type"] == "timeseries":
            exprs = " ".join(target["expr"] for target in panel["targets"])
            assert "histogram_quantile" in exprs
            assert "sloserve_slo_target_seconds" in exprs


def spec(*classes: str) -> Any:
    return parse_service(
        {
            "apiVersion": "sloserve.io/v1alpha1",
            "kind": "SLOService",
            "metadata": {"name": "assistant"},
            "spec": {
                "model": {"source": "builtin://tiny"},
                "sloClasses": [
                    {"name": name, "ttft": {"target": "1s"}, "tpot": "50ms"} for name in classes
                ],
            },
        }
    )


def test_a_services_board_is_bound_to_it_and_follows_its_classes() -> None:
    before, after = (
        json.loads(service_board_text(spec(*classes), namespace="team-a"))
        for classes in (("chat",), ("chat", "code"))
    )
    other = json.loads(service_board_text(spec("chat"), namespace="team-b"))
    assert before["uid"] == after["uid"] != other["uid"]
    assert len(before["uid"]) <= 40
    variables = {v["name"]: v for v in after["templating"]["list"]}
    assert variables["namespace"]["query"] == "team-a"
    assert variables["service"]["query"] == "assistant"
    assert variables["slo_class"]["query"] == "chat,code"
    assert after["panels"] == before["panels"]


def test_config_maps_carry_what_grafanas_sidecar_looks_for() -> None:
    whole: Any = boards_config_map(BOARDS, name="boards", namespace="monitoring")
    assert whole["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert whole["metadata"]["annotations"] == {"grafana_folder": "sloserve"}
    assert set(whole["data"]) == {f"sloserve-{name}.json" for name in BOARDS}
    assert sum(map(len, whole["data"].values())) < 900_000  # a ConfigMap holds 1 MiB
    own: Any = service_board_config_map(
        spec("chat"),
        service_namespace="team-a",
        name="assistant-board",
        namespace="team-a",
        labels={"grafana_dashboard": "yes"},
    )
    assert own["metadata"]["labels"] == {"grafana_dashboard": "yes"}
    (text,) = own["data"].values()
    assert json.loads(text)["title"] == "sloserve / team-a/assistant"
