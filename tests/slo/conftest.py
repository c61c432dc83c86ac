"""Builders: a manifest that is right, and one with a single field changed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

Manifest = dict[str, Any]

COMPLETE: Manifest = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "assistant", "namespace": "team-a", "generation": 7},
    "spec": {
        "model": {
            "source": "hf://Qwen/Qwen3-8B",
            "revision": "v1.0",
            "servedName": "qwen",
            "maxModelLen": 8192,
            "tokenSecretRef": {"name": "hf-token", "key": "token"},
            "cache": {"claimName": "models"},
            "loadTimeout": "30m",
            "chatTemplate": "{{ messages }}",
            "toolParser": "hermes",
            "lora": [{"name": "polite", "source": "hf://org/polite"}],
        },
        "engine": {
            "device": "cuda",
            "dtype": "bfloat16",
            "tensorParallelSize": 2,
            "kvCache": {"memoryFraction": "0.85", "size": "8Gi", "prefixCaching": False},
            "speculation": {"mode": "Never", "drafter": "ngram", "maxDraftTokens": 4},
            "maxRunning": 64,
            "maxBatchTokens": 4096,
            "threads": 4,
            "image": {
                "repository": "example.org/sloserve",
                "tag": "0.1.0",
                "pullPolicy": "IfNotPresent",
                "pullSecrets": [{"name": "registry"}],
            },
            "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "40Gi"}},
            "rollout": {"maxSurge": "25%", "maxUnavailable": 1, "onOperatorUpgrade": True},
            "podTemplate": {"spec": {"priorityClassName": "high"}},
        },
        "sloClasses": [
            {
                "name": "chat",
                "ttft": {"slowdown": 5, "floor": "200ms"},
                "tpot": "100ms",
                "objectivePercent": 99,
            },
            {
                "name": "code",
                "ttft": {"target": "500ms"},
                "tpot": "50ms",
                "objectivePercent": "99.5",
                "onInfeasible": "Decline",
                "weight": 2,
                "bank": "promise",
                "tightest": {"ttft": "200ms", "tpot": "20ms"},
            },
            {
                "name": "reason",
                "ttft": {"slowdown": "1.5"},
                "stages": [
                    {"name": "thinking", "tpot": "50ms", "until": "</think>"},
                    {"name": "answer", "tpot": "100ms"},
                ],
                "objectivePercent": 95,
            },
        ],
        "defaultClass": "code",
        "replicas": 2,
        "autoscaling": {
            "minReplicas": 1,
            "maxReplicas": 8,
            "targetAttainmentPercent": 97,
            "scaleDownDelay": "5m",
        },
        "gateway": {
            "replicas": 3,
            "auth": {"secretName": "keys"},
            "tls": {"secretName": "cert"},
            "service": {"type": "LoadBalancer"},
            "maxHops": 3,
            "holdTimeout": "1m30s",
        },
        "drain": {"timeout": "10m"},
        "observability": {
            "monitors": "Auto",
            "rules": "Always",
            "dashboard": "Never",
            "period": "7d",
        },
    },
}

MINIMAL: Manifest = {
    "apiVersion": "sloserve.io/v1alpha1",
    "kind": "SLOService",
    "metadata": {"name": "small"},
    "spec": {
        "model": {"source": "builtin://tiny"},
        "sloClasses": [{"name": "chat", "ttft": {"target": "1s"}, "tpot": "100ms"}],
    },
}


@pytest.fixture
def complete() -> Manifest:
    """Every field there is."""
    return copy.deepcopy(COMPLETE)


@pytest.fixture
def minimal() -> Manifest:
    """What must be there, and nothing else."""
    return copy.deepcopy(MINIMAL)


@pytest.fixture
def changed() -> Callable[[Manifest, str, object], Manifest]:
    """`changed(manifest, "spec/sloClasses/0/tpot", "1s")`; the value `...` removes the field."""

    def change(manifest: Manifest, path: str, value: object) -> Manifest:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        place: Any = manifest
        for part in way:
            place = place[part] if isinstance(part, int) else place.setdefault(part, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
        return manifest

    return change
