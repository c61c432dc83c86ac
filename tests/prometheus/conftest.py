"""
A real Prometheus that scrapes a real service: `sloserve up` under `sloserve bench`.

Replicas are simulated, and slower than their planner believes: it is told the steps of one GPU and
runs on another. One class has all the time of the world, one can't be kept by anybody.
"""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench import alert
from bench.prometheus import MISSING, Prometheus, Refused, Series, program, running, until

from sloserve.local.rules import to_yaml
from sloserve.metrics import OPERATOR, Kind
from sloserve.rules import operator_groups, rules_file, service_groups
from sloserve.slo import parse_service
from sloserve_operator.conditions import Type
from sloserve_operator.figures import CONTENT_TYPE, Figures

PATIENCE_S = 120.0
BELIEVED, TRUE = "h200", "a100"
HURRY = 60
"""A minute of the rules is a second in `hurried`."""
MANIFEST: dict[str, Any] = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "demo"},
    "spec": {
        "model": {"source": f"builtin://sim?profile={TRUE}"},
        "sloClasses": [
            {"name": "chat", "ttft": {"target": "5s"}, "tpot": "60ms", "objectivePercent": 90},
            # nobody can keep this one: it is served best-effort, and it burns
            {"name": "hopeless", "ttft": {"target": "1ms"}, "tpot": "1ms"},
        ],
        "replicas": 2,
        "drain": {"timeout": "5s"},
    },
}
RANGE = re.compile(r"(?<=\[)[0-9a-z:]+(?=\])|(?<=offset )\w+")
SPAN = re.compile(r"(\d+)([smhd])")
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def hurried_text(text: str) -> str:
    """The ranges of an expression, or a duration alone, 60 times as short."""

    def span(found: re.Match[str]) -> str:
        return f"{int(found[1]) * UNIT_S[found[2]] * 1000 // HURRY}ms"

    if SPAN.fullmatch(text):
        return SPAN.sub(span, text)
    return RANGE.sub(lambda found: SPAN.sub(span, found[0]), text)


def config(folder: Path, rules: Any, targets: list[str]) -> Path:
    """A Prometheus' configuration, with rules that are evaluated every second."""
    for group in rules["groups"]:
        group["interval"] = "1s"
    (folder / "rules.yaml").write_text(to_yaml(rules))
    scrape = {"job_name": "sloserve", "static_configs": [{"targets": targets}]}
    path = folder / "prometheus.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules.yaml"],
                "scrape_configs": [scrape],
            }
        )
    )
    return path


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    """Without them there is nothing to test."""
    if sys.platform != "linux":
        pytest.skip("`sloserve up` is tested on Linux")
    if program() is None:
        pytest.skip(MISSING)


@pytest.fixture(scope="session")
def service(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[alert.Service]:
    """`sloserve up` under `sloserve bench`."""
    folder = tmp_path_factory.mktemp("service")
    manifest = folder / "service.yaml"
    manifest.write_text(yaml.safe_dump(MANIFEST))
    with (
        alert.serving(
            manifest,
            folder / "state",
            folder / "up.txt",
            num_replicas=2,
            words=["--profile", BELIEVED],
        ) as up,
        alert.loaded(
            up, folder / "bench.txt", rate=8.0, words=["--shares", "chat=0.8,hopeless=0.2"]
        ),
    ):
        yield up


@pytest.fixture(scope="session")
def targets(service: alert.Service, operator: str) -> list[str]:
    """Everybody who is scraped: the service as `sloserve up` tells it, and an operator."""
    (found,) = yaml.safe_load((service.state / "targets.json").read_text())
    return [*found["targets"], operator]


@pytest.fixture(scope="session")
def operator(tools: None) -> Iterator[str]:
    """
    The address of an operator's metrics: its own exporter, with numbers that nobody measured.

    Whether a real operator moves them is for a cluster to show.
    """
    figures = Figures()
    status = {"ready": "1/2", "conditions": [{"type": t.value, "status": "False"} for t in Type]}
    figures.services([{"status": status}])
    words = {"result": "failed", "verb": "apply", "direction": "up", "constraint": "TTFT"}
    for metric in OPERATOR:
        if metric.kind is Kind.COUNTER:
            figures.add(metric.name, *(words[label] for label in metric.labels))
        elif metric.kind is Kind.GAUGE and not metric.labels:
            figures.set(metric.name, value=1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            figures.observe("sloserve_operator_reconcile_seconds", value=0.02)
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(figures.text())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def prometheus(
    targets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """One with the rules of the service and of the operator as they are."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules = rules_file((*service_groups(parse_service(MANIFEST)), *operator_groups()))
    with running(config(folder, rules, targets), folder) as found:
        yield found


@pytest.fixture(scope="session")
def hurried(targets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One with the same rules of the service, every range and `for` 60 times as short."""
    folder = tmp_path_factory.mktemp("hurried")
    rules: Any = rules_file(service_groups(parse_service(MANIFEST)))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = hurried_text(rule["expr"])
            if "for" in rule:
                rule["for"] = hurried_text(rule["for"])
            for name, text in rule.get("annotations", {}).items():
                rule["annotations"][name] = hurried_text(text)
    with running(config(folder, rules, targets), folder) as found:
        yield found


@pytest.fixture(scope="session")
def model() -> str:
    """The model's name."""
    return parse_service(MANIFEST).model.served_name


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any], Callable[[], str]], float]:
    """`eventually(check, what)`: wait for a true value."""
    return lambda check, what: until(check, what, patience_s=PATIENCE_S)


@pytest.fixture
def answered(eventually: Any) -> Callable[[dict[str, Callable[[], list[Series]]]], None]:
    """
    Ask until every question has had an answer once; the questions by their words.

    A question that Prometheus refuses is not asked again.
    """

    def ask(questions: dict[str, Callable[[], list[Series]]]) -> None:
        left, refused = dict(questions), []

        def all_answered() -> bool:
            for words, question in list(left.items()):
                try:
                    if question():
                        del left[words]
                except Refused as error:
                    refused.append(str(error))
                    del left[words]
            return not left

        eventually(all_answered, lambda: "\n".join(["no data for:", *sorted(left)]))
        assert refused == []

    return ask
