"""The command lines: settings, refusals, and the explanation of a service."""

import argparse
import json
from collections.abc import Callable, Sequence

import pytest

from sloserve.errors import BadInput, Failed
from sloserve_operator import cli, explain
from sloserve_operator.api import Obj
from sloserve_operator.settings import OperatorSettings, from_environment

Make = Callable[..., Obj]


def test_an_empty_environment_means_the_defaults() -> None:
    assert from_environment({}) == OperatorSettings()


def test_everything_can_be_told_by_the_environment() -> None:
    told = from_environment(
        {
            "SLOSERVE_NAMESPACE": "ops",
            "SLOSERVE_WATCH_NAMESPACES": "team-a, team-b",
            "SLOSERVE_WATCH_SELECTOR": "tier=gold",
            "SLOSERVE_IDENTITY": "uid-1",
            "SLOSERVE_LEASE": "gold",
            "SLOSERVE_LISTEN": ":9999",
            "SLOSERVE_ENGINE_CPU_IMAGE": "r/cpu:1",
            "SLOSERVE_ENGINE_CUDA_IMAGE": "r/cuda:1",
            "SLOSERVE_GATEWAY_IMAGE": "r/gw:1",
            "SLOSERVE_IMAGE_PULL_POLICY": "Always",
            "SLOSERVE_IMAGE_PULL_SECRETS": "a,b",
            "SLOSERVE_FS_GROUP": "",
            "SLOSERVE_NETWORK_POLICIES": "false",
            "SLOSERVE_PROMETHEUS_LABELS": "app=prom",
            "SLOSERVE_MONITOR_LABELS": "release=prometheus",
            "SLOSERVE_RUNBOOK_URL": "https://wiki.example/runbook",
            "SLOSERVE_REPLICA_REQUESTS": "cpu=1000m,memory=2Gi",
            "SLOSERVE_GATEWAY_REQUESTS": "",
        }
    )
    assert told.runbook_url == "https://wiki.example/runbook"
    assert (told.namespace, told.watched, told.selector) == (
        "ops",
        ("team-a", "team-b"),
        "tier=gold",
    )
    assert (told.identity, told.lease, told.listen) == ("uid-1", "gold", ":9999")
    assert told.images.engine_cuda == "r/cuda:1"
    assert told.images.pull_secrets == ("a", "b")
    assert told.fs_group is None
    assert not told.network_policies
    assert told.prometheus_labels == {"app": "prom"}
    assert told.monitor_labels == {"release": "prometheus"}
    assert told.replica_requests == {"cpu": "1", "memory": "2Gi"}, "as the API server writes it"
    assert told.gateway_requests == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SLOSERVE_FS_GROUP", "x"), ("SLOSERVE_NETWORK_POLICIES", "maybe"),
     ("SLOSERVE_MONITOR_LABELS", "release"), ("SLOSERVE_REPLICA_REQUESTS", "cpu"),
     ("SLOSERVE_GATEWAY_REQUESTS", "cpu=much")],
)  # fmt: skip
def test_what_can_not_be_meant_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(BadInput, match=variable):
        from_environment({variable: value})


def test_flags_go_over_the_environment() -> None:
    args = argparse.Namespace(
        namespace="flag", watch_selector=None, lease=None, identity=None, listen=None,
        watch_namespace=["a"],
    )  # fmt: skip
    told = cli.with_arguments(OperatorSettings(namespace="env", lease="env"), args)
    assert (told.namespace, told.lease, told.watched) == ("flag", "env", ("a",))


def test_bad_input_ends_with_two_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLOSERVE_FS_GROUP", "wheel")
    assert cli.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_to_connect_to_ends_with_one_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nonexistent/kubeconfig")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert cli.main([]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "KUBECONFIG" in told


def condition(kind: str, status: str, reason: str, message: str) -> Obj:
    return {"type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": 1}  # fmt: skip


@pytest.fixture
def troubled(manifest: Make) -> Obj:
    """A service that misses its promises for want of replicas."""
    service = manifest()
    service["status"] = {
        "ready": "2/2",
        "bindingConstraint": "TPOT",
        "classes": [
            {"name": "fast", "attainment5m": "81.0", "budgetRemaining": "-12.0"},
            {"name": "slow", "budgetRemaining": "100.0"},
        ],
        "conditions": [
            condition("Accepted", "True", "Accepted", "fine"),
            condition("Ready", "True", "Ready", "fine"),
            condition("Available", "True", "Answering", "2 replicas answer"),
            condition("Progressing", "False", "Complete", "nothing"),
            condition("SLOMet", "False", "Missed", "in the last 5 minutes: fast 81.0%"),
            condition("CapacityLimited", "True", "MaxReplicas", "4 replicas are wanted"),
        ],
    }
    return service


def test_a_missed_promise_is_explained_with_what_would_help(troubled: Obj) -> None:
    told = explain.explanation(troubled)
    assert told.splitlines()[0] == "chat: 2/2 replicas ready, does not keep its promises"
    assert "fast 81.0%" in told
    assert "capacity: 4 replicas are wanted" in told
    assert "what would help: tokens can't be made fast enough" in told
    assert "fast: 81.0 % in the last 5 minutes, -12.0 % of the error budget left" in told
    assert "slow: no requests lately" in told
    assert "stuck" not in told


def test_a_healthy_service_needs_few_words(troubled: Obj) -> None:
    status = troubled["status"]
    status["bindingConstraint"] = "None"
    status["conditions"][4] = condition("SLOMet", "True", "Met", "fine")
    status["conditions"].pop()
    told = explain.explanation(troubled)
    assert told.splitlines()[0] == "chat: 2/2 replicas ready, keeps its promises"
    assert not [line for line in told.splitlines() if line.startswith("-")]


def test_what_stands_in_the_way_comes_first(troubled: Obj) -> None:
    conditions = troubled["status"]["conditions"]
    conditions[0] = condition("Accepted", "False", "InvalidSpec", "spec.replicas: is -1")
    conditions[2] = condition("Available", "False", "NoGateway", "no gateway of 2 is ready")
    conditions[3] = condition("Progressing", "False", "SecretMissing", "create the Secret")
    told = explain.explanation(troubled).splitlines()
    assert told[0] == "chat: does not answer (no gateway of 2 is ready)"
    assert told[1] == "- the spec is not carried out: spec.replicas: is -1"
    assert told[2] == "- stuck: create the Secret"


def test_without_an_operator_it_says_so(manifest: Make) -> None:
    assert "no operator has looked at it yet" in explain.explanation(manifest())


def test_the_plugin_asks_kubectl_with_its_flags(troubled: Obj) -> None:
    asked: list[Sequence[str]] = []

    def get(words: Sequence[str]) -> str:
        asked.append(words)
        return json.dumps(troubled)

    args = explain._parser().parse_args(["explain", "chat", "-n", "team", "--context", "c"])
    assert explain.run(args, get).startswith("chat:")
    assert asked == [
        ["get", "sloservices.sloserve.io", "chat", "--output", "json",
         "--namespace", "team", "--context", "c"]
    ]  # fmt: skip


def test_kubectl_that_is_not_there_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Failed, match="not installed"):
        explain.kubectl(["version"])
