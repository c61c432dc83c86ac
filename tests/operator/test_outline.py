"""What is kept of objects that were heard."""

import copy
from collections.abc import Callable
from typing import Any

import kopf

from sloserve_operator import names
from sloserve_operator.api import Key, Obj
from sloserve_operator.cache import Cache
from sloserve_operator.handlers import NoDiffBase, make_settings
from sloserve_operator.outline import LAST_APPLIED, lean, outline

CHAT = Key("team", "chat")


def heard(kind: str, *, version: str = "5", **fields: Any) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "name": "chat-it", "namespace": "team", "uid": "u", "resourceVersion": version,
            "labels": names.labels("chat", names.GATEWAY),
            "annotations": {LAST_APPLIED: "{}", names.APPLIED: "abc"},
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        },
    } | fields  # fmt: skip


def test_nothing_in_the_cache_has_managed_fields_or_what_kubectl_applied_last() -> None:
    cache, told = Cache(), heard("ConfigMap", data={"a": "b"})
    whole = copy.deepcopy(told)
    cache.put(told)
    (kept,) = cache.of_kind("ConfigMap")
    assert "managedFields" not in kept["metadata"]
    assert kept["metadata"]["annotations"] == {names.APPLIED: "abc"}
    assert kept["data"] == {"a": "b"}
    assert told == whole  # it is somebody else's


def test_of_a_pods_spec_only_startup_probes_are_kept() -> None:
    probe = {"failureThreshold": 60, "periodSeconds": 2}
    container = {"name": "gateway", "image": "x", "startupProbe": probe, "env": [{"name": "A"}]}
    status = {"podIP": "10.0.0.1"}
    pod = heard("Pod", spec={"containers": [container], "volumes": [1]}, status=status)
    kept = lean(pod)
    assert kept["spec"] == {"containers": [{"name": "gateway", "startupProbe": probe}]}
    assert kept["status"] == status


def test_of_a_child_as_wanted_its_metadata_and_its_replicas_are_kept() -> None:
    live = lean(heard("Deployment", spec={"replicas": 2, "template": {}}, status={"replicas": 1}))
    wanted = {"metadata": {"labels": names.labels("chat", names.GATEWAY)}}
    kept = outline(live, wanted)
    assert kept["metadata"] == live["metadata"]
    assert kept["metadata"]["labels"] is wanted["metadata"]["labels"]  # once, not twice
    assert (kept["spec"], kept["status"]) == ({"replicas": 2}, {"replicas": 1})
    config = outline(lean(heard("ConfigMap", data={"a": "b"})), wanted)
    assert config.keys() == {"apiVersion", "kind", "metadata"}


def test_what_is_known_in_this_version_is_not_kept_a_second_time() -> None:
    cache = Cache()
    cache.put(heard("ConfigMap", data={"a": "b"}))
    (kept,) = cache.of_kind("ConfigMap")
    assert cache.known_as(heard("ConfigMap")) is kept
    newer, nobodys = heard("ConfigMap", version="6"), heard("Secret")
    assert cache.known_as(newer) is newer
    assert cache.known_as(nobodys) is nobodys


def test_only_the_version_that_was_looked_at_shrinks() -> None:
    cache = Cache()
    old, new = (heard("ConfigMap", version=version, data={"a": "b"}) for version in "56")
    cache.put(new)
    cache.shrink(outline(lean(old), {"metadata": {}}))
    assert cache.of_kind("ConfigMap")[0]["data"] == {"a": "b"}
    cache.shrink(outline(lean(new), {"metadata": {}}))
    assert "data" not in cache.of_kind("ConfigMap")[0]
    assert cache.put(new) is None  # no news


def test_kopf_copies_no_object_and_lists_in_pages() -> None:
    settings = make_settings(clusterwide=True, selector="")
    storage = settings.persistence.diffbase_storage
    assert isinstance(storage, NoDiffBase)
    assert storage.build(body=kopf.Body({"spec": {"a": 1}}), extra_fields=[]) == {}
    assert storage.fetch(body=kopf.Body({})) is None
    assert settings.watching.chunk_size


def test_a_list_is_kept_as_it_is_known(manifest: Callable[..., Obj]) -> None:
    cache = Cache()
    cache.put(lean(manifest()))
    known = cache.service(CHAT)
    assert known is not None
    changed = cache.replace("SLOService", [cache.known_as(manifest())], version="9")
    assert changed == set()
    assert cache.service(CHAT) is known
