"""One operator process without Kopf: the fake cluster's watchers take its place."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sloserve_operator.api import CHILD_KINDS, Obj
from sloserve_operator.cluster import ApiError
from sloserve_operator.conditions import Type, find
from sloserve_operator.lease import Lease
from sloserve_operator.operator import LOST_LEASE, OPTIONAL, Operator
from sloserve_operator.settings import OperatorSettings

Fake = Any
Make = Callable[..., Obj]
NUM_CHILDREN = 11


async def until(true: Callable[[], bool]) -> None:
    """Wait for what is asserted."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.002)


def an_operator(cluster: Fake, ended: list[int], *, resync_s: float = 300.0) -> Operator:
    settings = OperatorSettings(namespace="sys", resync_s=resync_s)
    lease = Lease(cluster, namespace="sys", name="op", identity="one")
    return Operator(cluster, lease=lease, settings=settings, end=ended.append)


def children(cluster: Fake) -> int:
    return len([key for key in cluster.objects if key[0] in CHILD_KINDS])


def holder(cluster: Fake) -> str:
    return str(cluster.objects["Lease", "sys", "op"]["spec"]["holderIdentity"])


def test_it_leads_works_heals_what_it_did_not_hear_and_steps_down(
    cluster: Fake, manifest: Make
) -> None:
    async def story() -> None:
        ended: list[int] = []
        cluster.known.clear()
        cluster.put(manifest())
        operator = an_operator(cluster, ended, resync_s=0.05)
        cluster.watchers.append(operator.heard)
        await operator.start()
        assert holder(cluster) == "one"
        await until(lambda: children(cluster) == NUM_CHILDREN)
        cluster.put(manifest(replicas=4))
        await until(lambda: cluster.one("Deployment", "chat-replica")["spec"]["replicas"] == 4)
        cluster.watchers.clear()  # the watch is dead, nobody notices
        cluster.remove("Service", "team", "chat-gateway")
        await until(lambda: children(cluster) == NUM_CHILDREN)
        assert operator.problem() == ""
        await operator.stop()
        assert holder(cluster) == ""
        assert ended == []

    asyncio.run(story())


def monitoring(cluster: Fake) -> tuple[str, str]:
    told = find(cluster.one("SLOService", "chat").get("status") or {}, Type.MONITORING_READY)
    return told.get("status", ""), told.get("reason", "")


def test_kinds_that_come_and_go_are_noticed_long_before_the_next_complete_look(
    cluster: Fake, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloserve_operator.operator.KINDS_S", 0.01)

    async def story() -> None:
        cluster.known.clear()
        cluster.put(manifest())
        operator = an_operator(cluster, [], resync_s=3600.0)
        cluster.watchers.append(operator.heard)
        await operator.start()
        await until(lambda: monitoring(cluster) == ("True", "KindMissing"))
        cluster.known |= OPTIONAL.keys()
        await until(lambda: monitoring(cluster) == ("True", "MonitorExists"))
        assert children(cluster) == NUM_CHILDREN + 3  # two monitors and a board
        for kind in OPTIONAL:
            cluster.remove_kind(kind)
        await until(lambda: monitoring(cluster) == ("True", "KindMissing"))
        await until(lambda: children(cluster) == NUM_CHILDREN)
        assert not [obj for kind in OPTIONAL for obj in operator.cache.of_kind(kind)]
        await until(lambda: operator.queue.idle)
        failed = "sloserve_operator_reconciles_total", "failed"
        assert f'{failed[0]}{{result="{failed[1]}"}} 0.0' in operator.figures.text().decode()
        await operator.stop()

    asyncio.run(story())


def test_a_kind_without_a_right_to_it_is_not_looked_at_again_and_again(
    cluster: Fake, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloserve_operator.operator.KINDS_S", 0.002)
    looks: list[str] = []

    def no_right(verb: str, kind: str, name: str) -> ApiError | None:
        looks.append(f"{verb} {kind}")
        return ApiError(403, "no right") if kind in OPTIONAL else None

    async def story() -> None:
        cluster.fail = no_right
        cluster.known |= OPTIONAL.keys()
        cluster.put(manifest())
        operator = an_operator(cluster, [])
        await operator.start()
        await until(lambda: monitoring(cluster) == ("True", "KindMissing"))
        reads = cluster.reads
        await until(lambda: cluster.reads >= reads + 20)  # ten times asked for kinds
        await operator.stop()

    asyncio.run(story())
    assert [looks.count(f"list {kind}") for kind in OPTIONAL] == [1, 1]


def test_it_waits_for_the_lease_and_the_crd_before_it_looks_at_anything(
    cluster: Fake, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloserve_operator.lease.STANDBY_S", 0.005)

    async def story() -> None:
        cluster.put(manifest())
        other = Lease(cluster, namespace="sys", name="op", identity="other")
        keeping = asyncio.create_task(other.keep(lambda: None))
        await asyncio.wait_for(other.leading.wait(), 60)
        operator = an_operator(cluster, [])
        starting = asyncio.create_task(operator.start())
        await asyncio.sleep(0.05)
        assert children(cluster) == 0
        keeping.cancel()
        await other.release()
        await asyncio.wait_for(starting, 60)
        await until(lambda: children(cluster) > 0)
        await operator.stop()

    asyncio.run(story())


def test_a_cluster_that_is_not_ready_is_waited_for(
    cluster: Fake, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloserve_operator.operator.AGAIN_S", 0.005)
    tries = 0

    def not_yet(verb: str, kind: str, name: str) -> ApiError | None:
        nonlocal tries
        tries += verb == "list"
        return ApiError(403, "no right to list") if verb == "list" and tries < 3 else None

    async def story() -> None:
        cluster.fail = not_yet
        cluster.put(manifest())
        operator = an_operator(cluster, [])
        await operator.start()
        await until(lambda: children(cluster) > 0)
        await operator.stop()

    asyncio.run(story())
    assert tries > 3


def test_one_that_loses_its_lease_ends_at_once(
    cluster: Fake, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloserve_operator.lease.RENEW_S", 0.005)

    async def story() -> None:
        ended: list[int] = []
        operator = an_operator(cluster, ended)
        await operator.start()
        stolen = dict(cluster.objects["Lease", "sys", "op"])
        stolen["spec"] = {**stolen["spec"], "holderIdentity": "thief"}
        cluster.put(stolen)
        await until(lambda: ended == [LOST_LEASE])
        assert not operator.lease.valid()
        await operator.stop()
        assert holder(cluster) == "thief"

    asyncio.run(story())


def test_a_standby_that_is_told_to_stop_leaves_nothing_behind(cluster: Fake) -> None:
    async def story() -> None:
        other = Lease(cluster, namespace="sys", name="op", identity="other")
        keeping = asyncio.create_task(other.keep(lambda: None))
        await asyncio.wait_for(other.leading.wait(), 60)
        operator = an_operator(cluster, [])
        starting = asyncio.create_task(operator.start())
        await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert holder(cluster) == "other"

    asyncio.run(story())
