"""
The Grafana boards that travel with the package, and a service's own one.

They are built in `dashboards/` of the source tree and copied here by `make generate`.
"""

import hashlib
import json
from importlib import resources
from typing import Any

from sloserve.slo import ServiceSpec

Variable = dict[str, Any]
BOARDS = ("slo", "latency", "planner", "replicas", "gateway", "operator", "capacity")
"""Their names; a board's uid is `sloserve-NAME`."""


def board_text(name: str) -> str:
    """A board as JSON, as Grafana imports it."""
    return resources.files(__package__).joinpath("dashboards", f"{name}.json").read_text("utf-8")


def service_board_text(spec: ServiceSpec, *, namespace: str) -> str:
    """
    The overview bound to one service: its own uid, and the classes of its manifest to choose from.

    It changes when the classes do, and only then.
    """
    board: dict[str, Any] = json.loads(board_text("slo"))
    place = f"{namespace}/{spec.name}"
    board["uid"] = "slo-" + hashlib.sha256(place.encode()).hexdigest()[:16]
    board["title"] = f"sloserve / {place}"
    board["description"] = f"The promises of {place}: which is at risk, since when, what binds."
    fixed = {"namespace": namespace, "service": spec.name}
    board["templating"]["list"] = [
        _variable(v, fixed, [c.name for c in spec.classes]) for v in board["templating"]["list"]
    ]
    return json.dumps(board, indent=2) + "\n"


def _variable(
    variable: dict[str, Any], fixed: dict[str, str], classes: list[str]
) -> dict[str, Any]:
    name = variable["name"]
    if name in fixed:
        return {"name": name, "type": "constant", "query": fixed[name], "hide": 2}
    if name == "slo_class":
        return {
            "name": name,
            "label": variable["label"],
            "type": "custom",
            "query": ",".join(classes),
            "multi": True,
            "includeAll": True,
            "allValue": "|".join(classes),
            "current": variable["current"],
        }
    return variable
