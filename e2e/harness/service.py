"""One SLOService in the cluster: apply it, watch it, talk to it."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
from e2e.harness.kubectl import Kubectl, Obj, Refused
from e2e.harness.waiting import until

CHAT: Obj = {
    "name": "chat",
    "ttft": {"target": "2s"},
    "tpot": "200ms",
    "objectivePercent": 95,
}
"""A promise that a simulated replica keeps easily, on a busy machine too."""

CPU: Obj = {"requests": {"cpu": "200m"}}
"""A pod that asks for nothing gets next to nothing while others on its node start up."""
OURS = "app.kubernetes.io/managed-by=sloserve-operator"
CHILD_KINDS = (
    "deployments,services,configmaps,serviceaccounts,poddisruptionbudgets,networkpolicies,pods"
)


def manifest(name: str, **spec: Any) -> Obj:
    """A service of simulated replicas, one gateway and the class `chat`; `spec` goes over it."""
    base: Obj = {
        "model": {"source": "builtin://sim?profile=h200"},
        "sloClasses": [CHAT],
        "replicas": 1,
        "engine": {"resources": CPU},
        "gateway": {"replicas": 1, "service": {"type": "NodePort"}, "resources": CPU},
        "drain": {"timeout": "60s"},
    }
    engine, gateway = ({**base[part], **spec.pop(part, {})} for part in ("engine", "gateway"))
    return {
        "apiVersion": "sloserve.io/v1alpha1",
        "kind": "SLOService",
        "metadata": {"name": name},
        "spec": {**base, **spec, "engine": engine, "gateway": gateway},
    }


def _containers(pod: Obj) -> list[Obj]:
    statuses: list[Obj] = pod["status"].get("containerStatuses") or []
    return statuses


class Service:
    """
    A service by name. `apply(**spec)` takes fields of `spec` over the defaults of `manifest`.

    Clients come from outside, through the NodePort of the gateway Service at `host`.
    """

    def __init__(
        self, kubectl: Kubectl, name: str, *, host: str, labels: Mapping[str, str] | None = None
    ) -> None:
        self.kubectl, self.name, self.host = kubectl, name, host
        self.labels = dict(labels or {})
        self._port: int | None = None

    # --- as its owner ---------------------------------------------------------------------------

    def manifest(self, **spec: Any) -> Obj:
        """What its owner writes."""
        made = manifest(self.name, **spec)
        made["metadata"]["labels"] = self.labels
        return made

    def apply(self, **spec: Any) -> None:
        """Apply it with these fields."""
        self.kubectl.apply(self.manifest(**spec))

    def change(self, **spec: Any) -> None:
        """Merge these fields into its spec."""
        self.kubectl.patch("slosvc", self.name, {"spec": spec})

    def wait(self, condition: str, *, timeout_s: float = 180) -> None:
        """`kubectl wait --for=condition=...` for this generation."""
        words = (f"--for=condition={condition}", f"--timeout={timeout_s:g}s", self.ref)
        self.kubectl("wait", *words, timeout_s=timeout_s + 30)

    def ready(self, **spec: Any) -> "Service":
        """Apply it, and wait until this generation serves."""
        self.apply(**spec)
        self.wait_ready()
        return self

    def wait_ready(self, *, timeout_s: float = 180) -> None:
        """Wait until the newest generation serves."""

        def holds() -> bool:
            now = self.object()
            told = self.condition("Ready", now)
            newest = told.get("observedGeneration") == now["metadata"]["generation"]
            return newest and told.get("status") == "True"

        until(holds, f"{self.ref} is Ready", timeout_s=timeout_s)

    @property
    def ref(self) -> str:
        """As kubectl names it."""
        return f"slosvc/{self.name}"

    def object(self) -> Obj:
        """As the API server has it."""
        found = self.kubectl.get("slosvc", self.name)
        assert found, f"{self.ref} is gone"
        return found

    def status(self) -> Obj:
        """Its status."""
        status: Obj = self.object().get("status") or {}
        return status

    def condition(self, kind: str, obj: Obj | None = None) -> Obj:
        """One condition; {} when it is not there."""
        status = (obj or self.object()).get("status") or {}
        found = [c for c in status.get("conditions", ()) if c["type"] == kind]
        return found[0] if found else {}

    def until_condition(
        self, kind: str, status: str, reason: str | None = None, *, timeout_s: float = 120
    ) -> Obj:
        """Wait for a condition with this status and reason; the condition."""

        def holds() -> Obj | None:
            told = self.condition(kind)
            fits = told.get("status") == status and reason in (None, told.get("reason"))
            return told if fits else None

        what = f"{kind} of {self.ref} is {status} {reason or ''}"
        told = until(holds, what, timeout_s=timeout_s)
        assert told
        return told

    def pods(self, part: str) -> list[Obj]:
        """Pods of `replica` or `gateway` that are not on their way out."""
        selector = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={part}"
        found = self.kubectl.list("pods", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def pod_names(self, part: str) -> set[str]:
        """Names of those pods."""
        return {pod["metadata"]["name"] for pod in self.pods(part)}

    def processes(self, part: str) -> set[tuple[str, int]]:
        """Uid and restarts of each of those pods: the same set means the same processes."""
        return {
            (pod["metadata"]["uid"], sum(s["restartCount"] for s in _containers(pod)))
            for pod in self.pods(part)
        }

    def children(self) -> list[Obj]:
        """Everything in the namespace that has the labels of its children, pods too."""
        selector = f"app.kubernetes.io/instance={self.name},{OURS}"
        return self.kubectl.list(CHILD_KINDS, selector)

    def writers(self, field: str) -> set[str]:
        """Who wrote a field of its spec, as the API server's books have it."""
        words = ("get", self.ref, "--show-managed-fields", "-o", "json")
        books = json.loads(self.kubectl(*words))["metadata"]["managedFields"]
        return {e["manager"] for e in books if f"f:{field}" in e["fieldsV1"].get("f:spec", {})}

    def ready_pods(self, part: str) -> set[str]:
        """Names of those that take requests."""
        return {
            pod["metadata"]["name"]
            for pod in self.pods(part)
            for told in pod["status"].get("conditions", ())
            if told["type"] == "Ready" and told["status"] == "True"
        }

    def pods_on(self, node: str, *parts: str) -> set[str]:
        """Names of the pods of these parts on a node, those on their way out too."""
        pods = self.all_pods(*parts)
        return {pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") == node}

    def all_pods(self, *parts: str) -> list[Obj]:
        """Pods of these parts, those on their way out too."""
        component = f"app.kubernetes.io/component in ({','.join(parts or ('replica', 'gateway'))})"
        return self.kubectl.list("pods", f"app.kubernetes.io/instance={self.name},{component}")

    def until_gone(self, pods: Iterable[str], *, timeout_s: float = 120) -> None:
        """Wait until the last process of these pods has ended."""
        gone = set(pods)

        def left() -> set[str]:
            return gone & {pod["metadata"]["name"] for pod in self.all_pods()}

        until(lambda: not left(), f"{sorted(gone)} are gone", timeout_s=timeout_s)

    # --- its processes --------------------------------------------------------------------------

    def restarts(self, part: str) -> dict[str, int]:
        """How often the processes of each pod of a part were started again."""
        return {
            pod["metadata"]["name"]: sum(
                status["restartCount"] for status in pod["status"]["containerStatuses"]
            )
            for pod in self.pods(part)
        }

    def python(self, pod: str, code: str) -> str:
        """Run Python in a pod; what it printed. Raises Refused."""
        return self.kubectl("exec", pod, "--", "python", "-c", code)

    def tell_to_stop(self, pod: str) -> None:
        """SIGTERM to the process of a pod that stays."""
        self.python(pod, "import os, signal; os.kill(1, signal.SIGTERM)")

    def kill(self, pod: str) -> None:
        """
        SIGKILL to the process of a pod, which needs `shareProcessNamespace` (nobody can kill the
        first process of a namespace from inside). The kubelet starts it again.
        """
        with contextlib.suppress(Refused):  # it takes this one with it
            self.python(pod, "import os, signal; os.kill(-1, signal.SIGKILL)")

    def gateway_report(self, pod: str) -> Obj:
        """What a gateway tells the operator."""
        url = "http://127.0.0.1:9090/report"
        code = f"from urllib.request import urlopen; print(urlopen({url!r}).read().decode())"
        told: Obj = json.loads(self.python(pod, code))
        return told

    def replicas_seen(self, gateway: str) -> dict[str, Obj]:
        """The replicas as one gateway sees them, by pod name (or address, when they are silent)."""
        return {seen["replica"]: seen for seen in self.gateway_report(gateway)["replicas"]}

    def until_found(self) -> None:
        """
        Wait until every gateway knows every replica: cluster DNS may remember for half a minute
        that there was none. Requests are held meanwhile, which keeps no promise.
        """
        replicas = self.pod_names("replica")

        def found() -> bool:
            return all(
                replicas <= {name for name, r in self.replicas_seen(g).items() if is_ready(r)}
                for g in self.pod_names("gateway")
            )

        until(found, "every gateway knows every replica", pause_s=1)

    def explain(self) -> str:
        """What the plugin says: `kubectl sloserve explain`."""
        return self.kubectl.plugin("sloserve", "explain", self.name)

    # --- as its client --------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        """Base URL for clients outside the cluster, ends in /v1."""
        if self._port is None:
            service = until(
                lambda: self.kubectl.get("service", f"{self.name}-gateway"),
                f"the gateway Service of {self.ref} is there",
            )
            assert service
            self._port = service["spec"]["ports"][0]["nodePort"]
        return f"http://{self.host}:{self._port}/v1"

    def complete(
        self,
        *,
        prompt_tokens: int = 16,
        max_tokens: int = 8,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> httpx.Response:
        """One completion that is not streamed; whatever the answer is."""
        body = {
            "model": self.name,
            "prompt": [100 + number % 100 for number in range(prompt_tokens)],
            "max_tokens": max_tokens,
            "ignore_eos": True,
        }
        url, told = f"{self.base_url}/completions", dict(headers or {})
        return httpx.post(url, json=body, headers=told, timeout=timeout_s)

    def replica_reports(self) -> dict[str, str]:
        """Metrics of every replica, by pod, read through the API server."""
        return self._metrics("replica", 8000)

    def gateway_reports(self) -> dict[str, str]:
        """Metrics of every gateway, by pod, read through the API server."""
        return self._metrics("gateway", 9090)

    def _metrics(self, part: str, port: int) -> dict[str, str]:
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/pods/"
        return {
            name: self.kubectl("get", "--raw", f"{path}{name}:{port}/proxy/metrics")
            for name in self.pod_names(part)
        }

    def describe(self) -> str:
        """Everything a person wants to see when a story failed."""
        return json.dumps(self.kubectl.get("slosvc", self.name), indent=1)


def is_ready(replica: Obj) -> bool:
    """Whether a gateway's replica takes requests."""
    return bool(replica["state"] == "ready")
