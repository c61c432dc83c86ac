"""What an edit of the manifest means, and how a machine is shared."""

import copy
from typing import Any

import pytest

from sloserve.local.decide import edit, num_replicas, share_out
from sloserve.slo import ServiceSpec, parse_service

Manifest = dict[str, Any]


@pytest.fixture
def current(manifest: Manifest) -> ServiceSpec:
    """What runs."""
    return parse_service(manifest)


@pytest.fixture
def wanted(manifest: Manifest) -> Manifest:
    """What the file says next."""
    return copy.deepcopy(manifest)


def test_nothing_changed_is_no_new_generation(current: ServiceSpec) -> None:
    change = edit(current, current)
    assert change.spec == current
    assert change.applied == change.needs_restart == ()


def test_classes_and_replicas_apply_and_count_one_generation(
    current: ServiceSpec, wanted: Manifest
) -> None:
    wanted["spec"]["sloClasses"][0]["tpot"] = "50ms"
    wanted["spec"]["replicas"] = 5
    change = edit(current, parse_service(wanted))
    assert change.applied == ("classes chat", "replicas 2 -> 5")
    assert change.spec.generation == current.generation + 1
    assert change.spec.classes[0].stages[0].tpot_s == 0.05


def test_model_and_engine_stay_until_a_restart_while_the_rest_applies(
    current: ServiceSpec, wanted: Manifest
) -> None:
    wanted["spec"]["model"]["source"] = "builtin://tiny"
    wanted["spec"]["engine"] = {"dtype": "float32"}
    wanted["spec"]["drain"] = {"timeout": "1m"}
    change = edit(current, parse_service(wanted))
    assert change.needs_restart == ("spec.model", "spec.engine")
    assert change.spec.model == current.model
    assert change.spec.engine == current.engine
    assert change.spec.drain_timeout_s == 60
    assert change.applied == ("drain",)


def test_an_edit_that_only_needs_a_restart_is_no_new_generation(
    current: ServiceSpec, wanted: Manifest
) -> None:
    wanted["spec"]["engine"] = {"dtype": "float32"}
    change = edit(current, parse_service(wanted))
    assert change.spec == current
    assert change.needs_restart == ("spec.engine",)


@pytest.mark.parametrize(
    ("num_cores", "num_parts", "threads"), [(8, 2, 4), (2, 2, 1), (2, 3, 1), (7, 2, 3)]
)
def test_replicas_share_cores_and_memory(
    current: ServiceSpec, num_cores: int, num_parts: int, threads: int
) -> None:
    shared = share_out(current, num_cores=num_cores, num_parts=num_parts)
    assert shared.engine.threads == threads
    assert shared.engine.kv_memory_fraction == pytest.approx(0.9 / num_parts, abs=1e-6)


def test_threads_that_the_manifest_sets_stay(wanted: Manifest) -> None:
    wanted["spec"]["engine"] = {"threads": 3}
    shared = share_out(parse_service(wanted), num_cores=64, num_parts=2)
    assert shared.engine.threads == 3


def test_there_is_always_one_replica_and_autoscaling_gives_its_least(wanted: Manifest) -> None:
    wanted["spec"]["replicas"] = 0
    assert num_replicas(parse_service(wanted)) == 1
    wanted["spec"]["autoscaling"] = {"minReplicas": 3, "maxReplicas": 9}
    assert num_replicas(parse_service(wanted)) == 3
