"""Reconciling: quiet, refusals, other people's objects."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, Key, Obj
from sloserve_operator.cluster import ApiError
from sloserve_operator.conditions import Type, find
from sloserve_operator.settings import OperatorSettings

Fake = Any
Make = Callable[..., Obj]
CHAT = Key("team", "chat")
NUM_CHILDREN = 11


World = Any


def children(cluster: Fake) -> set[str]:
    return {f"{k}/{n}" for (k, _, n) in cluster.objects if k in CHILD_KINDS}


def test_a_service_gets_its_children_and_then_nothing_more_is_written(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        assert len(children(world.cluster)) == NUM_CHILDREN
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")
        assert world.status["ready"] == "2/2"
        assert world.status["selector"] == names.selector_text("chat", names.REPLICA)
        writes, reads = len(world.cluster.writes), world.cluster.reads
        for _ in range(3):
            await world.look()
        assert (len(world.cluster.writes), world.cluster.reads) == (writes, reads)

    asyncio.run(story())


def test_a_restarted_operator_writes_nothing_when_everything_is_in_place(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest(engine={"resources": {"limits": {"cpu": "1000m"}}}))
        await world.settle()
        before = len(world.cluster.writes)
        world.restart()
        world.events.clear()
        await world.resync()
        await world.settle()
        assert world.cluster.writes[before:] == []

    asyncio.run(story())


def test_a_spelling_of_the_api_server_is_not_fought_over(world: World, manifest: Make) -> None:
    overlay = {
        "spec": {"containers": [{"name": "replica", "resources": {"limits": {"cpu": "1000m"}}}]}
    }

    async def story() -> None:
        world.cluster.put(manifest(engine={"podTemplate": overlay}))
        await world.settle()
        before = len(world.cluster.writes)
        for _ in range(3):
            world.dirty[CHAT] = None
            await world.settle()
        assert world.cluster.writes[before:] == []

    asyncio.run(story())


def test_a_kind_that_is_gone_is_told_and_keeps_nothing_else_from_being_made(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.operator.kinds = frozenset({"PodMonitor", "PrometheusRule"})  # as it was a while ago
        world.cluster.put(manifest(observability={"dashboard": "Never"}))
        await world.settle()
        assert len(children(world.cluster)) == NUM_CHILDREN
        assert world.operator.kinds == frozenset()
        assert world.condition(Type.MONITORING_READY) == ("True", "KindMissing")
        assert world.condition(Type.READY) != ("False", "NotAccepted")
        before = len(world.cluster.writes)
        world.dirty[CHAT] = None
        await world.settle()
        assert world.cluster.writes[before:] == []

    asyncio.run(story())


def test_what_somebody_changes_or_deletes_comes_back(world: World, manifest: Make) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        deployment = copy.deepcopy(world.cluster.one("Deployment", "chat-replica"))
        deployment["spec"]["replicas"] = 7
        world.cluster.put(deployment, manager="somebody")
        world.cluster.remove("Service", "team", "chat-gateway")
        await world.settle()
        assert world.cluster.one("Deployment", "chat-replica")["spec"]["replicas"] == 2
        assert world.cluster.one("Service", "chat-gateway")

    asyncio.run(story())


def test_fields_that_are_no_longer_wanted_disappear(world: World, manifest: Make) -> None:
    overlay = {"spec": {"nodeSelector": {"gpu": "yes"}}}

    async def story() -> None:
        world.cluster.put(manifest(engine={"podTemplate": overlay}))
        await world.settle()
        world.cluster.put(manifest())
        await world.settle()
        pod = world.cluster.one("Deployment", "chat-replica")["spec"]["template"]["spec"]
        assert not pod.get("nodeSelector")

    asyncio.run(story())


def test_children_that_are_not_wanted_any_more_are_pruned(world: World, manifest: Make) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        world.settings = OperatorSettings(network_policies=False)
        world.restart()
        await world.resync()
        await world.settle()
        assert not [name for name in children(world.cluster) if "NetworkPolicy" in name]
        assert len(children(world.cluster)) == NUM_CHILDREN - 2

    asyncio.run(story())


def test_an_object_of_that_name_that_is_not_ours_is_never_touched(
    world: World, manifest: Make
) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat-gateway", "namespace": "team"},
        "spec": {"ports": [{"name": "x", "port": 1}]},
    }

    async def story() -> None:
        world.cluster.put(theirs)
        before = copy.deepcopy(world.cluster.one("Service", "chat-gateway"))
        world.cluster.put(manifest())
        await world.settle()
        assert world.cluster.one("Service", "chat-gateway") == before
        assert world.condition(Type.ACCEPTED) == ("False", "NameConflict")
        assert "Service chat-gateway" in find(world.status, Type.ACCEPTED)["message"]
        assert await world.look() == 10.0, "it looks again by itself"
        world.cluster.remove("Service", "team", "chat-gateway")
        world.time_s += 10.0
        await world.look()
        await world.settle()
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")
        assert "ownerReferences" in world.cluster.one("Service", "chat-gateway")["metadata"]

    asyncio.run(story())


def test_one_made_between_look_and_apply_is_not_taken_over_either(
    world: World, manifest: Make
) -> None:
    def somebody_is_faster(verb: str, kind: str, name: str) -> ApiError | None:
        if (verb, kind) == ("apply", "ConfigMap") and ("ConfigMap", "team", name) not in (
            world.cluster.objects
        ):
            theirs = {"kind": kind, "metadata": {"name": name}, "data": {"service.yaml": "mine"}}
            world.cluster.put(theirs)
        return None

    async def story() -> None:
        world.cluster.fail = somebody_is_faster
        world.cluster.put(manifest())
        await world.settle()
        assert world.cluster.one("ConfigMap", "chat-config")["data"] == {"service.yaml": "mine"}
        assert world.condition(Type.ACCEPTED) == ("False", "NameConflict")

    asyncio.run(story())


def test_a_spec_that_can_not_be_read_changes_nothing_that_runs(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        before = {k: v for k, v in world.cluster.objects.items() if k[0] in CHILD_KINDS}
        world.cluster.put(manifest(defaultClass="nobody"))
        await world.settle()
        assert {k: v for k, v in world.cluster.objects.items() if k[0] in CHILD_KINDS} == before
        assert world.condition(Type.ACCEPTED) == ("False", "InvalidSpec")
        assert world.condition(Type.READY) == ("False", "NotAccepted")
        assert world.status["observedGeneration"] == 2
        world.cluster.put(manifest())
        await world.settle()
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")

    asyncio.run(story())


def test_a_pod_template_that_the_cluster_refuses_is_told_and_changes_nothing(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        before = {k: v for k, v in world.cluster.objects.items() if k[0] in CHILD_KINDS}
        typo = {"podTemplate": {"spec": {"nosuchfield": 1}}}
        world.cluster.put(manifest(engine=typo))
        await world.settle()
        assert {k: v for k, v in world.cluster.objects.items() if k[0] in CHILD_KINDS} == before
        assert world.condition(Type.ACCEPTED) == ("False", "InvalidPodTemplate")
        assert ".nosuchfield" in find(world.status, Type.ACCEPTED)["message"]
        tries = len([w for w in world.cluster.writes if w[0] == "apply"])
        for _ in range(5):
            await world.look()
        assert len([w for w in world.cluster.writes if w[0] == "apply"]) == tries
        world.cluster.put(manifest())
        await world.settle()
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")

    asyncio.run(story())


def test_a_deleted_service_takes_its_children_along_and_is_left_alone(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        world.cluster.remove("SLOService", "team", "chat")
        await world.settle()
        assert children(world.cluster) == set()
        assert not [k for k in world.cluster.objects if k[0] == "SLOService"]

    asyncio.run(story())


def test_a_service_made_anew_waits_for_the_remains_of_the_old_one(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        old = world.cluster.objects.pop(("SLOService", "team", "chat"))  # collected later
        reborn = manifest()
        reborn["metadata"] |= {"uid": "uid-reborn"}
        world.cluster.put(reborn)
        await world.resync()
        assert await world.look() == 1.0
        assert find(world.status, Type.ACCEPTED)["reason"] == "CleaningUp"
        owner = world.cluster.one("Service", "chat-gateway")["metadata"]["ownerReferences"][0]
        assert owner["uid"] == old["metadata"]["uid"]
        for kind, namespace, name in list(world.cluster.objects):
            if kind in CHILD_KINDS or kind == "Pod":
                world.cluster.remove(kind, namespace, name)
        await world.settle()
        assert len(children(world.cluster)) == NUM_CHILDREN
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")

    asyncio.run(story())


def test_spec_and_secrets_are_never_written_or_read(world: World, manifest: Make) -> None:
    seen: set[tuple[str, str]] = set()

    def watch(verb: str, kind: str, name: str) -> None:
        seen.add((verb, kind))

    async def story() -> None:
        world.cluster.fail = watch
        model = {"source": "hf://org/model", "tokenSecretRef": {"name": "hub"}}
        service = manifest(model=model, gateway={"auth": {"secretName": "keys"}})
        world.cluster.put(service)
        await world.settle()
        assert world.cluster.one("SLOService", "chat")["spec"] == service["spec"]

    asyncio.run(story())
    assert not [pair for pair in seen if pair[1] == "Secret"]
    writes = ("apply", "SLOService/status")
    assert {w[0] for w in world.cluster.writes if w[1] == "SLOService"} == {"apply/status"}, writes


def test_a_namespace_that_goes_away_is_no_error(world: World, manifest: Make) -> None:
    gone = ApiError(403, "namespace team is being terminated", cause="NamespaceTerminating")

    async def story() -> None:
        world.cluster.fail = lambda verb, kind, name: gone if verb == "apply" else None
        world.cluster.put(manifest())
        while world.events:
            world.hear()
        assert await world.look() is None

    asyncio.run(story())


def test_an_api_server_that_fails_is_an_error_to_be_tried_again(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        while world.events:
            world.hear()
        world.cluster.fail = lambda verb, kind, name: ApiError(503, "try later")
        with pytest.raises(ApiError, match="try later"):
            await world.look()
        world.cluster.fail = lambda verb, kind, name: None
        world.dirty[CHAT] = None  # the queue's retry
        await world.settle()
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")

    asyncio.run(story())
