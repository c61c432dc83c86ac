"""Reconciling against a small true API server: convergence, quiet, refusals, others' things."""

import asyncio
import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, POD, SERVICE, Key, Kind, Obj
from sloserve_operator.cache import Cache
from sloserve_operator.cluster import ApiError
from sloserve_operator.conditions import Type, find
from sloserve_operator.figures import Figures
from sloserve_operator.observed import Now
from sloserve_operator.posting import Poster
from sloserve_operator.reconciler import Reconciler
from sloserve_operator.reports import GatewayReport, parse_report
from sloserve_operator.settings import Images, OperatorSettings

Fake = Any
Make = Callable[..., Obj]
CHAT = Key("team", "chat")
NUM_CHILDREN = 11


class World:
    """An operator over a fake cluster, whose events are delivered when the test says so."""

    def __init__(self, cluster: Fake, moment: Callable[[float], Now]) -> None:
        self.cluster = cluster
        self.time_s = 0.0
        self._moment = moment
        self.events: list[tuple[Kind, str | None, Obj]] = []
        self.reports: dict[str, GatewayReport] = {}
        cluster.watchers.append(lambda *event: self.events.append(event))
        cluster.known.clear()
        self.settings = OperatorSettings()
        self.restart()

    def restart(self) -> None:
        """A new process: nothing is remembered, nothing heard."""
        self.cache = Cache()
        self.dirty: dict[Key, None] = {}
        self.figures = Figures()
        self.operator = Reconciler(
            self.cluster,
            self.cache,
            settings=self.settings,
            reports=lambda pods: {
                p["metadata"]["uid"]: self.reports[p["metadata"]["uid"]]
                for p in pods
                if p["metadata"]["uid"] in self.reports
            },
            poster=Poster(self.cluster, wrote=lambda verb: None),
            figures=self.figures,
            clock=lambda: self._moment(self.time_s),
        )

    def hear(self, number: int = 0) -> None:
        """Deliver one event."""
        _, change, obj = self.events.pop(number)
        key = self.cache.drop(obj) if change == "DELETED" else self.cache.put(obj)
        if key is not None:
            self.dirty[key] = None

    async def resync(self) -> None:
        """Look at everything, as the operator does every few minutes."""
        for kind in (SERVICE, *CHILD_KINDS.values(), POD):
            labels = "" if kind is SERVICE else names.OURS
            listed = await self.cluster.list_all(kind, None, labels=labels)
            self.cache.replace(kind.kind, listed.items, version=listed.version)
        self.dirty |= dict.fromkeys(self.cache.known())

    async def look(self, key: Key = CHAT) -> float | None:
        self.dirty.pop(key, None)
        return await self.operator.reconcile(key)

    async def settle(self, *, roll_out: bool = True) -> None:
        """Everything heard, everything done, until nothing happens any more."""
        for _ in range(50):
            while self.events:
                self.hear()
            if roll_out:
                self.cluster.roll_out()
            for key in list(self.dirty):
                await self.look(key)
            if not self.events and not self.dirty:
                return
        raise AssertionError("it does not come to rest")

    def hear_gateways(self, make: Callable[..., Obj], **fields: Any) -> None:
        """Every gateway reports this."""
        for pod in self.cluster.all("Pod"):
            if pod["metadata"]["labels"][names.COMPONENT] == names.GATEWAY:
                self.reports[pod["metadata"]["uid"]] = parse_report(make(**fields))
        self.dirty[CHAT] = None

    @property
    def status(self) -> Obj:
        return dict(self.cluster.one("SLOService", "chat").get("status") or {})

    def condition(self, kind: Type) -> tuple[str, str]:
        told = find(self.status, kind)
        return told["status"], told["reason"]


@pytest.fixture
def world(cluster: Fake, moment: Callable[[float], Now]) -> World:
    return World(cluster, moment)


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
        world.cluster.remove("Service", "team", "chat-gateway")
        world.time_s += 61  # it looks again by itself
        again_s = await world.look()
        assert again_s is None or again_s <= 61
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


def test_a_class_change_reaches_pods_without_a_restart(
    world: World, manifest: Make, report: Callable[..., Obj], replica: Callable[..., Obj]
) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        world.hear_gateways(report, replicas=[replica()])
        await world.settle()
        assert world.condition(Type.READY) == ("True", "Ready")
        assert world.status["observedGeneration"] == 1
        pods = {p["metadata"]["uid"] for p in world.cluster.all("Pod")}
        slower = [{"name": "fast", "ttft": {"target": "3s"}, "tpot": "90ms"}]
        world.cluster.put(manifest(sloClasses=slower))
        await world.settle()
        assert {p["metadata"]["uid"] for p in world.cluster.all("Pod")} == pods
        for pod in world.cluster.all("Pod"):
            assert pod["metadata"]["annotations"][names.CONFIG_GENERATION] == "2"
        assert world.condition(Type.READY) == ("False", "ConfigNotRead")
        assert world.status["observedGeneration"] == 1
        world.hear_gateways(report, generation=2, replicas=[replica(generation=2)])
        await world.settle()
        assert world.condition(Type.READY) == ("True", "Ready")
        assert world.status["observedGeneration"] == 2

    asyncio.run(story())


def test_an_operator_upgrade_restarts_gateways_but_no_engine(world: World, manifest: Make) -> None:
    async def story() -> None:
        world.cluster.put(manifest())
        await world.settle()
        world.settings = OperatorSettings(images=Images(gateway="r/gateway:next"))
        world.restart()
        await world.resync()
        await world.settle()
        images = {
            d["metadata"]["name"]: d["spec"]["template"]["spec"]["containers"][0]["image"]
            for d in world.cluster.all("Deployment")
        }
        assert images["chat-gateway"] == "r/gateway:next"
        assert images["chat-replica"] == Images().gateway
        world.cluster.put(manifest(engine={"maxRunning": 8}))
        await world.settle()
        live = world.cluster.one("Deployment", "chat-replica")
        assert live["spec"]["template"]["spec"]["containers"][0]["image"] == "r/gateway:next"

    asyncio.run(story())


def test_only_a_few_services_are_restarted_by_an_upgrade_at_a_time(
    world: World, manifest: Make
) -> None:
    async def story() -> None:
        for number in range(8):
            world.cluster.put(manifest(name=f"s{number}"))
        await world.settle()
        world.settings = OperatorSettings(images=Images(gateway="r/next:1"), max_rollouts=3)
        world.restart()
        await world.resync()
        for _ in range(4):
            for key in list(world.dirty) or [Key("team", f"s{n}") for n in range(8)]:
                await world.look(key)
        assert num_upgraded(world) == 3
        for _ in range(4):
            await world.settle()
            world.dirty |= {Key("team", f"s{n}"): None for n in range(8)}
        await world.settle()
        assert num_upgraded(world) == 8

    asyncio.run(story())


def num_upgraded(world: World) -> int:
    images = [
        d["spec"]["template"]["spec"]["containers"][0]["image"]
        for d in world.cluster.all("Deployment")
        if d["metadata"]["name"].endswith("-gateway")
    ]
    return images.count("r/next:1")


def test_scale_down_tells_first_which_pods_are_cheap(
    world: World, manifest: Make, report: Callable[..., Obj], replica: Callable[..., Obj]
) -> None:
    async def story() -> None:
        world.cluster.put(manifest(replicas=3))
        await world.settle()
        pods = [p for p in world.cluster.all("Pod") if "replica" in p["metadata"]["name"]]
        loads = dict(zip((p["status"]["podIP"] for p in pods), (5, 0, 3), strict=True))
        told = [replica(address=f"{ip}:8000", running=load) for ip, load in loads.items()]
        world.hear_gateways(report, replicas=told)
        await world.settle()
        start = len(world.cluster.writes)
        world.cluster.put(manifest(replicas=1))
        await world.settle(roll_out=False)
        kinds = [write[:2] for write in world.cluster.writes[start:]]
        assert kinds.index(("merge", "Pod")) < kinds.index(("apply", "Deployment"))
        world.cluster.roll_out()
        (left,) = [p for p in world.cluster.all("Pod") if "replica" in p["metadata"]["name"]]
        assert loads[left["status"]["podIP"]] == 5  # the busiest one stays

    asyncio.run(story())


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


@pytest.mark.parametrize("seed", range(25))
def test_it_converges_under_any_order_of_events_failures_and_restarts(
    world: World, manifest: Make, seed: int
) -> None:
    """Events late, twice, never; applies that fail; an operator that dies in the middle."""
    rng = random.Random(seed)
    changes: list[dict[str, Any]] = [
        {"replicas": 3},
        {"replicas": 0},
        {"engine": {"maxRunning": 8}},
        {"gateway": {"replicas": 1}},
        {"defaultClass": "slow"},
        {},
    ]

    def flaky(verb: str, kind: str, name: str) -> ApiError | None:
        return ApiError(503, "flaky") if rng.random() < 0.15 and verb != "list" else None

    async def story() -> None:
        last: Obj = manifest()
        world.cluster.put(last)
        world.cluster.fail = flaky
        for _ in range(120):
            action = rng.random()
            if action < 0.4 and world.events:
                number = rng.randrange(len(world.events))
                if rng.random() < 0.15:
                    world.events.insert(0, copy.deepcopy(world.events[number]))  # heard twice
                world.hear(number)
            elif action < 0.45 and world.events:
                world.events.pop(rng.randrange(len(world.events)))  # lost for good
            elif action < 0.75 and world.dirty:
                try:
                    await world.look(rng.choice(list(world.dirty)))
                except ApiError:
                    world.dirty[CHAT] = None
            elif action < 0.82:
                last = manifest(**rng.choice(changes))
                world.cluster.put(last)
            elif action < 0.88:
                world.cluster.roll_out()
            elif action < 0.91:
                doomed = rng.choice(
                    [k for k in world.cluster.objects if k[0] != "SLOService"] or [None]
                )
                if doomed is not None:
                    world.cluster.remove(*doomed)
            elif action < 0.94:
                world.restart()
                await world.resync()
            elif action < 0.96:
                world.cluster.remove("SLOService", "team", "chat")
                last = manifest()
                last["metadata"]["uid"] = f"uid-{rng.random()}"
                world.cluster.put(last)
        world.cluster.fail = lambda verb, kind, name: None
        world.time_s += 120
        await world.resync()
        await world.settle()
        assert len(children(world.cluster)) == NUM_CHILDREN
        spec = last["spec"]
        replicas = world.cluster.one("Deployment", "chat-replica")
        assert replicas["spec"]["replicas"] == spec["replicas"]
        uid = world.cluster.one("SLOService", "chat")["metadata"]["uid"]
        for (kind, _, _), obj in world.cluster.objects.items():
            if kind in CHILD_KINDS:
                assert obj["metadata"]["ownerReferences"][0]["uid"] == uid
        assert world.status["ready"] == f"{spec['replicas']}/{spec['replicas']}"
        assert world.condition(Type.ACCEPTED) == ("True", "Accepted")
        before = len(world.cluster.writes)
        await world.look()
        assert len(world.cluster.writes) == before

    asyncio.run(story())
