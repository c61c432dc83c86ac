"""
Write what is generated from declared metrics and boards: `python -m dashboards.generate`.

The tests compare; this is the command that fixes what they find.
"""

from collections.abc import Callable
from pathlib import Path

from dashboards.capacity import capacity
from dashboards.gateway import gateway
from dashboards.latency import latency
from dashboards.metrics import metrics_document
from dashboards.operator import operator
from dashboards.overview import overview
from dashboards.planner import planner
from dashboards.replicas import replicas
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Panel

from sloserve.local.rules import to_yaml
from sloserve.rules import operator_groups, rules_file
from sloserve.rules.boards import BOARDS

ROOT = Path(__file__).resolve().parents[1]
BUILDERS: dict[str, Callable[[], Dashboard]] = {
    "slo": overview,
    "latency": latency,
    "planner": planner,
    "replicas": replicas,
    "gateway": gateway,
    "operator": operator,
    "capacity": capacity,
}
COPIES = (
    "dashboards",
    "server/sloserve/rules/dashboards",  # package data: what the operator gives to Grafana
    "charts/sloserve/files/dashboards",  # a chart reads no file outside of itself
)
OPERATOR_RULES = "charts/sloserve/files/rules/operator.yaml"
BEGIN, END = "<!-- generated: panels -->\n", "<!-- end of generated -->\n"


def generated() -> dict[str, str]:
    """Every generated file by its path from the root, as it must be."""
    boards = {name: BUILDERS[name]().build() for name in BOARDS}
    texts = {
        name: JSONEncoder(sort_keys=True, indent=2).encode(board) + "\n"
        for name, board in boards.items()
    }
    files = {f"{folder}/{name}.json": text for folder in COPIES for name, text in texts.items()}
    tables = []
    for name, board in boards.items():
        tables.append(f"### {board.title} (`{name}.json`)\n\n{board.description}\n")
        tables.append("| panel | answers |\n| --- | --- |")
        panels = [panel for panel in board.panels or [] if isinstance(panel, Panel)]
        tables += [f"| {panel.title} | {panel.description} |" for panel in panels]
        tables.append("")
    readme = (ROOT / "dashboards" / "README.md").read_text()
    head, tail = readme.split(BEGIN)[0], readme.split(END)[-1]
    files["dashboards/README.md"] = head + BEGIN + "\n" + "\n".join(tables) + END + tail
    files["docs/metrics.md"] = metrics_document()
    files[OPERATOR_RULES] = to_yaml(rules_file(operator_groups()))
    return files


def main() -> None:
    """Write what differs, and say so."""
    for name, text in generated().items():
        path = ROOT / name
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
