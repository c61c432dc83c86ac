"""
A Prometheus of the test's own that watches pods in the cluster.

It scrapes through the API server, so it needs no way into the cluster's network, and it takes
what to scrape from a PodMonitor and its rules from a PrometheusRule, as the Prometheus operator
does. Only the intervals are shorter: nobody wants to wait.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from e2e.harness.kubectl import Kubectl, Obj
from e2e.harness.waiting import until

INTERVAL = "2s"
_SNAKE = {"sourceLabels": "source_labels", "targetLabel": "target_label"}


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running one."""

    url: str

    def query(self, expr: str) -> list[Obj]:
        """The samples of an instant query."""
        found: list[Obj] = self._get("query", query=expr)["result"]
        return found

    def firing(self, name: str) -> list[Obj]:
        """Alerts of this name that fire."""
        alerts: list[Obj] = self._get("alerts")["alerts"]
        return [a for a in alerts if a["labels"]["alertname"] == name and a["state"] == "firing"]

    def rule_health(self) -> dict[str, str]:
        """Every rule with its state, or what went wrong."""
        return {
            f"{rule['name']} of {group['name']}": rule.get("lastError") or rule["health"]
            for group in self._get("rules")["groups"]
            for rule in group["rules"]
        }

    def targets(self) -> dict[str, str]:
        """What is scraped, by `job instance`: its health, or the last error."""
        return {
            f"{t['labels']['job']} {t['labels']['pod']}": t["lastError"] or t["health"]
            for t in self._get("targets", state="active")["activeTargets"]
        }

    def _get(self, what: str, **params: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=params, timeout=10)
        return answer.raise_for_status().json()["data"]


def find_prometheus() -> str | None:
    """The program, from PROMETHEUS or PATH."""
    return shutil.which(os.environ.get("PROMETHEUS") or "prometheus")


@contextmanager
def prometheus(
    program: str, folder: Path, *, scrapes: Sequence[Obj], rules: Obj
) -> Iterator[Prometheus]:
    """Run one over these scrape configurations and rules while the block does."""
    for group in rules["groups"]:
        group["interval"] = INTERVAL
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    config = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["rules.yaml"],
        "scrape_configs": list(scrapes),
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = _free_port()
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
             f"--web.listen-address=127.0.0.1:{port}"],
            cwd=folder, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        made = Prometheus(f"http://127.0.0.1:{port}")

        def answers() -> bool:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            try:
                return httpx.get(f"{made.url}/-/ready", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        until(answers, "Prometheus answers", timeout_s=60)
        yield made
    finally:
        process.terminate()
        process.wait(timeout=30)


@dataclass(frozen=True, slots=True)
class Access:
    """How kubectl reaches the API server, in Prometheus' words."""

    url: str
    tls: Obj
    authorization: Obj | None

    @property
    def client(self) -> Obj:
        """Fields of an HTTP client."""
        told: Obj = {"tls_config": self.tls}
        return told if self.authorization is None else told | {"authorization": self.authorization}


def access(kubectl: Kubectl, folder: Path) -> Access:
    """The access of the current context; certificates and keys are written into `folder`."""
    words = ("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
    config = json.loads(kubectl(*words))
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    tls: Obj = {}
    for field, found in (
        ("ca_file", cluster.get("certificate-authority-data")),
        ("cert_file", user.get("client-certificate-data")),
        ("key_file", user.get("client-key-data")),
    ):
        if found:
            path = folder / field
            path.touch(mode=0o600)
            path.write_bytes(base64.b64decode(found))
            tls[field] = str(path)
    token = user.get("token")
    return Access(cluster["server"], tls, {"credentials": token} if token else None)


def scrapes_of(monitor: Obj, via: Access) -> list[Obj]:
    """The scrape configurations that a PodMonitor stands for."""
    meta, spec = monitor["metadata"], monitor["spec"]
    chosen = [
        _keep(_pod_label(name), re.escape(value))
        for name, value in spec["selector"].get("matchLabels", {}).items()
    ]
    for match in spec["selector"].get("matchExpressions", ()):
        assert match["operator"] == "In", match
        chosen.append(_keep(_pod_label(match["key"]), "|".join(map(re.escape, match["values"]))))
    job = f"{meta['namespace']}/{meta['name']}"
    return [
        scrape(
            f"{job}/{number}",
            job=job,
            namespace=meta["namespace"],
            path=endpoint["path"],
            relabelings=[
                *chosen,
                _keep("__meta_kubernetes_pod_container_port_name", endpoint["port"]),
                *({_SNAKE.get(k, k): v for k, v in one.items()} for one in endpoint["relabelings"]),
            ],
            via=via,
        )
        for number, endpoint in enumerate(spec["podMetricsEndpoints"])
    ]


def scrape_port(job: str, *, namespace: str, labels: Obj, port: str, via: Access) -> Obj:
    """A scrape configuration for a named port of the pods with these labels."""
    chosen = [_keep(_pod_label(name), re.escape(value)) for name, value in labels.items()]
    named = _keep("__meta_kubernetes_pod_container_port_name", port)
    return scrape(
        job, job=job, namespace=namespace, path="/metrics", relabelings=[*chosen, named], via=via
    )


def scrape(
    name: str, *, job: str, namespace: str, path: str, relabelings: Sequence[Obj], via: Access
) -> Obj:
    """Pods of a namespace, through the API server's proxy, under their own addresses."""
    where = ["namespace", "pod_name", "pod_container_port_number"]
    through = [
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {"source_labels": ["__address__"], "target_label": "instance"},
        {"target_label": "job", "replacement": job},
        {
            "source_labels": [f"__meta_kubernetes_{one}" for one in where],
            "separator": "/",
            "regex": "(.+)/(.+)/(.+)",
            "target_label": "__metrics_path__",
            "replacement": f"/api/v1/namespaces/$1/pods/$2:$3/proxy{path}",
        },
        {"target_label": "__address__", "replacement": urlsplit(via.url).netloc},
    ]
    pods = {"role": "pod", "api_server": via.url, "namespaces": {"names": [namespace]}}
    return {
        "job_name": name,
        "scheme": urlsplit(via.url).scheme,
        **via.client,
        "kubernetes_sd_configs": [pods | via.client],
        "relabel_configs": [*relabelings, *through],
    }


def _keep(label: str, regex: str) -> Obj:
    return {"action": "keep", "source_labels": [label], "regex": regex}


def _pod_label(name: str) -> str:
    return "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
