"""A spec that can't be is refused with words a person can act on; what runs is left alone."""

from pathlib import Path

import pytest
from e2e.harness.kubectl import Kubectl, Refused
from e2e.harness.service import Service

SAMPLES = Path(__file__).parents[1] / "crds" / "samples" / "invalid"
CHOSEN = (
    "autoscaling-min-above-max",
    "default-class",
    "load-timeout-without-unit",
    "name-too-long",
    "no-classes",
    "slowdown-not-quoted",
    "tpot-too-short",
    "ttft-both",
    "unknown-field-deep",
)
MANY_CHARACTERS = 700
EXPLAINED = {
    "model.loadTimeout": "1s to 24h",
    "model.maxModelLen": "Tokens of prompt and output together",
    "engine.kvCache.size": "in bytes per replica, as 8Gi",
    "sloClasses": "A request names its class in the header x-slo-class",
    "sloClasses.ttft.target": "Time from arrival to the first token, 1ms to 24h",
    "sloClasses.tpot": "Time per output token after the first, 1ms to 1h",
    "sloClasses.objectivePercent": "in percent",
    "drain.timeout": "Time that running answers get to finish",
}


def announced(sample: Path) -> str:
    """What the sample says that the cluster will say."""
    lines = sample.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("# cluster: "))[len("# cluster: ") :]


def test_kubectl_apply_says_what_is_wrong_and_stores_nothing(kubectl: Kubectl) -> None:
    for sample in (SAMPLES / f"{name}.yaml" for name in CHOSEN):
        with pytest.raises(Refused) as refused:
            kubectl("apply", "-f", str(sample))
        said = str(refused.value)
        assert announced(sample) in said
        assert len(said) < MANY_CHARACTERS, f"nobody reads that far: {said}"
    assert kubectl.list("slosvc") == []


def test_kubectl_explain_tells_meaning_and_unit(kubectl: Kubectl) -> None:
    for field, words in EXPLAINED.items():
        told = " ".join(kubectl("explain", f"sloservices.spec.{field}").split())
        assert words in told


def test_a_pod_template_that_only_the_cluster_can_refuse_changes_nothing_that_runs(
    service: Service,
) -> None:
    service.ready()
    before = {part: service.pod_names(part) for part in ("replica", "gateway")}
    service.change(engine={"podTemplate": {"spec": {"restartPolicy": "Never"}}}, replicas=2)
    told = service.until_condition("Accepted", "False", "InvalidPodTemplate")
    assert "restartPolicy" in told["message"]
    assert 'supported values: "Always"' in told["message"]
    assert service.condition("Ready")["reason"] == "NotAccepted"
    assert service.condition("Available")["status"] == "True"
    assert service.complete().status_code == 200
    assert {part: service.pod_names(part) for part in before} == before

    service.change(engine={"podTemplate": None}, replicas=1)
    service.wait_ready()
    assert service.condition("Accepted")["status"] == "True"
    assert {part: service.pod_names(part) for part in before} == before
