"""The chart as a whole: lint, known output, valid objects, copies that are current."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Obj = dict[str, Any]
REFRESH = "UPDATE_SNAPSHOTS=1 python -m pytest tests/chart"


def test_helm_finds_nothing_wrong(helm: Any, chart: Path, values: Obj) -> None:
    done = helm.run("lint", "--strict", str(chart), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_rendered_is_what_was_reviewed(helm: Any, variant: str, values: Obj) -> None:
    lines = helm.text(values).splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("# Source: "))
    copied = ("kind: CustomResourceDefinition\n", "kind: ConfigMap\n")  # compared with their source
    parts = [p for p in text.split("---\n") if not any(kind in p for kind in copied)]
    rendered = "---\n".join(parts)
    path = Path(__file__).parent / "snapshots" / f"{variant}.yaml"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(rendered)
    assert rendered == path.read_text(), f"if the change is meant: {REFRESH}"


def test_every_object_is_one_that_kubernetes_knows(
    helm: Any, values: Obj, find_program: Callable[[str], str]
) -> None:
    # the CRD is judged by an API server (tests/crds); the others are no kinds of Kubernetes
    schemas = Path(__file__).parent / "schemas"
    done = subprocess.run(
        [
            find_program("kubeconform"),
            "-strict",
            "-summary",
            "-skip=CustomResourceDefinition,ServiceMonitor,PrometheusRule",
            f"-schema-location={schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
        ],
        input=helm.text(values),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid: 0" not in done.stdout


def test_the_chart_carries_the_current_crd_and_dashboards(root: Path, chart: Path) -> None:
    for folder, pattern in (("crds", "*.yaml"), ("dashboards", "*.json")):
        ours = {p.name: p.read_text() for p in (root / folder).glob(pattern)}
        carried = {p.name: p.read_text() for p in (chart / "files" / folder).glob(pattern)}
        assert carried == ours, "run: make generate"


def test_the_crd_is_that_of_the_project_and_stays_on_uninstall(helm: Any, root: Path) -> None:
    (rendered,) = [o for o in helm.objects() if o["kind"] == "CustomResourceDefinition"]
    ours = yaml.safe_load((root / "crds" / "sloservices.sloserve.io.yaml").read_text())
    assert rendered["spec"] == ours["spec"]
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    dropped = helm.objects({"crds": {"keep": False}})
    (rendered,) = [o for o in dropped if o["kind"] == "CustomResourceDefinition"]
    assert "annotations" not in rendered["metadata"]


def test_a_dashboard_becomes_a_config_map_that_grafana_finds(
    helm: Any, chart: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "sloserve"
    shutil.copytree(chart, copy)
    board = '{"title": "SLO", "legendFormat": "{{slo_class}}"}\n'
    (copy / "files" / "dashboards").mkdir(exist_ok=True)
    (copy / "files" / "dashboards" / "mine.json").write_text(board)
    done = helm.run("template", "x", str(copy), values={"dashboards": {"enabled": True}})
    boards = [o for o in yaml.safe_load_all(done.stdout) if o["kind"] == "ConfigMap"]
    (mine,) = [o for o in boards if o["metadata"]["name"].endswith("-dashboard-mine")]
    assert mine["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert mine["data"]["sloserve-mine.json"].strip() == board.strip()


def test_every_object_has_the_labels_that_kubernetes_recommends(objects: list[Obj]) -> None:
    assert objects
    for obj in objects:
        labels = obj["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "sloserve"
        assert labels["app.kubernetes.io/instance"] == "sloserve"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/part-of"] == "sloserve"


def test_objects_of_two_releases_never_share_a_name_in_the_cluster(helm: Any) -> None:
    names = []
    for namespace in ("a", "b"):
        done = helm.run("template", "sloserve", str(helm.chart), "--namespace", namespace)
        names += [
            (o["kind"], o["metadata"]["name"])
            for o in yaml.safe_load_all(done.stdout)
            if o["kind"] in ("ClusterRole", "ClusterRoleBinding")
        ]
    assert len(names) == len(set(names)) == 8


def test_notes_name_the_next_three_commands(helm: Any, chart: Path, values: Obj) -> None:
    words = ("install", "sloserve", str(chart), "--dry-run=client", "--namespace", "llm")
    done = helm.run(*words, values=values)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert notes.count("  kubectl ") == 3
    namespaces = (values.get("watch") or {}).get("namespaces")
    assert ("-n team-a" if namespaces else "get slosvc -A") in notes


def test_the_version_is_that_of_the_package(chart: Path, root: Path) -> None:
    made = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert f'version = "{made["appVersion"]}"' in (root / "pyproject.toml").read_text()
    assert made["kubeVersion"] == ">=1.30.0-0"


def test_the_rules_on_the_operator_come_through_with_the_link_that_was_asked_for(
    helm: Any, chart: Path, variant: str, values: Obj
) -> None:
    rules = [o for o in yaml.safe_load_all(helm.text(values)) if o["kind"] == "PrometheusRule"]
    text = (chart / "files" / "rules" / "operator.yaml").read_text()
    asked = text.replace("docs/runbook.md#", f"{values.get('runbookUrl')}#")
    written = [yaml.safe_load(asked)] if variant == "everything" else []
    assert [rule["spec"] for rule in rules] == written
