"""A real Prometheus scrapes a real service: no panel is empty, rules evaluate, a page comes."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from sloserve.http.exporter import CONTENT_TYPE, Exporter
from sloserve.local.rules import to_yaml
from sloserve.local.state import free_port
from sloserve.metrics import EXPORTED, OPERATOR, Kind
from sloserve.rules import operator_groups, rules_file, service_groups
from sloserve.rules.boards import BOARDS, board_text
from sloserve.slo import parse_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="`sloserve up` is tested on Linux"),
]
PATIENCE_S = 180.0
ANY = ("$namespace", "$service", "$slo_class", "$replica")
MANIFEST: dict[str, Any] = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "demo"},
    "spec": {
        "model": {"source": "builtin://sim?profile=h200"},
        "sloClasses": [
            {"name": "chat", "ttft": {"target": "10s"}, "tpot": "2s"},
            # nobody can keep this one: it is served best-effort, and it burns
            {"name": "hopeless", "ttft": {"target": "1ms"}, "tpot": "1ms"},
        ],
        "replicas": 2,
        "drain": {"timeout": "5s"},
    },
}
# What boards made by others ask: vLLM's own, and Sloth's two.
STOCK = (
    "histogram_quantile(0.99, sum by(le) (rate(vllm:e2e_request_latency_seconds_bucket[10s])))",
    "rate(vllm:e2e_request_latency_seconds_sum[10s])",
    "rate(vllm:prompt_tokens_total[10s])",
    "rate(vllm:generation_tokens_total[10s])",
    "histogram_quantile(0.99, sum by(le) (rate(vllm:inter_token_latency_seconds_bucket[10s])))",
    "histogram_quantile(0.99, sum by(le) (rate(vllm:time_to_first_token_seconds_bucket[10s])))",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "sum by(le) (increase(vllm:request_prompt_tokens_bucket[10s]))",
    "sum by(le) (increase(vllm:request_generation_tokens_bucket[10s]))",
    "sum by(le) (increase(vllm:request_max_num_generation_tokens_bucket[10s]))",
    "sum by(finished_reason) (increase(vllm:request_success_total[10s]))",
    "rate(vllm:request_queue_time_seconds_sum[10s])",
    "rate(vllm:request_prefill_time_seconds_sum[10s])",
    "rate(vllm:request_decode_time_seconds_sum[10s])",
    'slo:sli_error:ratio_rate5m{sloth_service="demo", sloth_slo="chat"}',
    'slo:objective:ratio{sloth_service="demo"} * 100',
    'slo:period_error_budget_remaining:ratio{sloth_service="demo"}',
    'slo:current_burn_rate:ratio{sloth_service="demo"}',
    'slo:period_burn_rate:ratio{sloth_service="demo"}',
    'slo:time_period:days{sloth_service="demo"}',
    "count(sloth_slo_info)",
)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def until(check: Callable[[], Any], what: Callable[[], str]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            if check():
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.5)
    raise AssertionError(f"waited in vain: {what()}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`sloserve up`; the public URL and the address of its internal port."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "service.yaml").write_text(yaml.safe_dump(MANIFEST))
    port, internal = free_port(), free_port()
    words = ["--port", str(port), "--internal-port", str(internal), "--state", "state", "--plain"]
    with (folder / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sloserve.cli", "up", "-f", "service.yaml", *words],
            cwd=folder, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, (folder / "out.txt").read_text()
        return [r["state"] for r in get(f"{url}/v1/slo")["replicas"]] == ["ready"] * 2

    try:
        until(ready, lambda: (folder / "out.txt").read_text())
        yield url, f"127.0.0.1:{internal}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def load(service: tuple[str, str]) -> Iterator[None]:
    """Two users who ask one question after the other."""
    stop = threading.Event()

    def ask(slo_class: str) -> None:
        body = {"model": "demo", "prompt": "tell me " * 40, "stream": True, "max_tokens": 12,
                "ignore_eos": True}  # fmt: skip
        headers = {"content-type": "application/json", "x-slo-class": slo_class}
        url = f"{service[0]}/v1/completions"
        while not stop.is_set():
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as response:
                response.read()
            stop.wait(0.1)

    users = [threading.Thread(target=ask, args=(name,)) for name in ("chat", "hopeless")]
    for user in users:
        user.start()
    yield
    stop.set()
    for user in users:
        user.join()


@pytest.fixture(scope="module")
def operator_target() -> Iterator[str]:
    """Where an operator's metrics are: a small one that exports all of them."""
    exporter = Exporter(OPERATOR)
    words = {
        "result": "failed",
        "verb": "apply",
        "direction": "up",
        "constraint": "TTFT",
        "condition": "SLOMet",
        "status": "False",
        "state": "ready",
    }
    for metric in OPERATOR:
        labels = [words[label] for label in metric.labels]
        if metric.kind is Kind.COUNTER:
            exporter.add(metric.name, *labels)
        elif metric.kind is Kind.GAUGE:
            exporter.set(metric.name, *labels, value=1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            exporter.observe("sloserve_operator_reconcile_seconds", value=0.02)
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(exporter.render())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def prometheus(
    service: tuple[str, str],
    load: None,
    operator_target: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A Prometheus with our rules that scrapes everybody every second."""
    program = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if not program:
        pytest.skip("prometheus is not installed: put it on PATH, or its path into PROMETHEUS")
    folder = tmp_path_factory.mktemp("prometheus")
    rules: Any = rules_file((*service_groups(parse_service(MANIFEST)), *operator_groups()))
    for group in rules["groups"]:
        group["interval"] = "1s"  # nobody wants to wait
    (folder / "rules.yaml").write_text(to_yaml(rules))
    replicas = [r["address"] for r in get(f"{service[0]}/v1/slo")["replicas"]]
    targets = [service[1], operator_target, *replicas]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "sloserve", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            [program, "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
             f"--web.listen-address=127.0.0.1:{port}"],
            cwd=folder, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        until(
            lambda: get(f"{url}/api/v1/status/buildinfo"), lambda: (folder / "out.txt").read_text()
        )
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def has_data(url: str, expr: str) -> bool:
    """Whether a query gives a number."""
    for name in ANY:
        expr = expr.replace(name, ".*")
    expr = expr.replace("$__rate_interval", "10s").replace("$price", "2")
    query = urllib.parse.urlencode({"query": expr})
    found = get(f"{url}/api/v1/query?{query}")["data"]["result"]
    return any(not math.isnan(float(sample["value"][1])) for sample in found)


def lacking(url: str, left: set[str]) -> Callable[[], bool]:
    """Ask until every query had data once; `left` shrinks to those that had none."""

    def check() -> bool:
        left.difference_update([expr for expr in left if has_data(url, expr)])
        return not left

    return check


def test_every_query_of_every_panel_returns_data(prometheus: str) -> None:
    exprs = {
        target["expr"]
        for name in BOARDS
        for panel in json.loads(board_text(name))["panels"]
        for target in panel.get("targets", ())
    }
    assert len(exprs) > 60
    until(lacking(prometheus, exprs), lambda: "\n".join(sorted(exprs)))


def test_queries_of_stock_boards_return_data(prometheus: str) -> None:
    exprs = set(STOCK)
    until(lacking(prometheus, exprs), lambda: "\n".join(sorted(exprs)))


def test_every_declared_metric_is_exported_with_series(prometheus: str) -> None:
    names = {name for metric in EXPORTED for name in metric.series_names}
    until(lacking(prometheus, names), lambda: "\n".join(sorted(names)))


def test_every_rule_evaluates(prometheus: str) -> None:
    def health() -> dict[str, str]:
        groups = get(f"{prometheus}/api/v1/rules")["data"]["groups"]
        return {
            f"{rule['name']} of {group['name']}": rule.get("lastError") or rule["health"]
            for group in groups
            for rule in group["rules"]
        }

    until(lambda: set(health().values()) == {"ok"}, lambda: json.dumps(health(), indent=1))


def test_a_class_that_misses_its_promise_pages_and_the_page_says_what_binds(
    prometheus: str,
) -> None:
    def page() -> Any:
        alerts = get(f"{prometheus}/api/v1/alerts")["data"]["alerts"]
        return [
            alert
            for alert in alerts
            if alert["labels"]["alertname"] == "SloserveFastBurn" and alert["state"] == "firing"
        ]

    until(page, lambda: "SloserveFastBurn")
    (alert,) = page()
    assert alert["labels"]["slo_class"] == "hopeless"
    assert alert["annotations"]["constraint"] in ("TTFT", "TPOT")
    assert re.search(r"^100% of the requests missed", alert["annotations"]["description"])
