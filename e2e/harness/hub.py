"""A model hub inside the cluster."""

from pathlib import Path

from e2e.harness.kubectl import Kubectl
from e2e.harness.pods import pod_spec

SCRIPT = Path(__file__).with_name("hub_server.py")
TOKEN = "token-of-the-story"
PORT = 8000


LET_GO = f"""
import urllib.request
urllib.request.urlopen("http://127.0.0.1:{PORT}/let-go", data=b"", timeout=10)
"""


def start_hub(kubectl: Kubectl, *, image: str) -> str:
    """Start one from the engine's image, and wait until it answers; its URL inside the cluster."""
    metadata = {"name": "hub", "labels": {"app": "hub"}}
    code = {"hub_server.py": SCRIPT.read_text(encoding="utf-8")}
    pod = pod_spec(
        image,
        ["python", "/hub/hub_server.py"],
        env=[{"name": "TOKEN", "value": TOKEN}],
        volumeMounts=[{"name": "code", "mountPath": "/hub"}],
        readinessProbe={"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
    )
    pod["volumes"] = [{"name": "code", "configMap": {"name": "hub"}}]
    deployment = {
        "selector": {"matchLabels": {"app": "hub"}},
        "template": {"metadata": {"labels": {"app": "hub"}}, "spec": pod},
    }
    service = {"selector": {"app": "hub"}, "ports": [{"port": PORT}]}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": code},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": deployment},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    )
    kubectl("rollout", "status", "deployment/hub", "--timeout=120s")
    return f"http://hub.{kubectl.namespace}.svc:{PORT}"


def let_go(kubectl: Kubectl) -> None:
    """Let the hub send the rest of its files."""
    kubectl("exec", "deployment/hub", "--", "python", "-c", LET_GO)
