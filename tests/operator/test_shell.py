"""What waits and fails around the decisions: queue, cache, Lease."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from sloserve_operator import names
from sloserve_operator.api import LEASE, Key, Obj
from sloserve_operator.cache import Cache
from sloserve_operator.cluster import ApiError
from sloserve_operator.lease import DURATION_S, Lease
from sloserve_operator.workqueue import WorkQueue

Fake = Any
Make = Callable[..., Obj]
A, B = Key("team", "a"), Key("team", "b")


async def until(true: Callable[[], bool]) -> None:
    """Wait for what is asserted."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.002)


# The queue.


def test_a_key_is_worked_on_once_and_again_when_it_came_meanwhile() -> None:
    seen: list[Key] = []
    gate = asyncio.Event()
    active = 0

    async def work(key: Key) -> None:
        nonlocal active
        active += 1
        assert active <= 2
        seen.append(key)
        if key == A:
            await gate.wait()
        active -= 1

    async def story() -> None:
        queue = WorkQueue(min_interval_s=0.0)
        runner = asyncio.create_task(queue.run(work, num_workers=4))
        for _ in range(3):
            queue.add(A)
        queue.add(B)
        await until(lambda: seen == [A, B])
        queue.add(A)  # while it is worked on: never twice at a time
        await asyncio.sleep(0.01)
        assert seen == [A, B]
        gate.set()
        await until(lambda: seen == [A, B, A] and queue.idle)
        runner.cancel()

    asyncio.run(story())


def test_a_failure_is_repeated_and_does_not_stop_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sloserve_operator.workqueue.FIRST_RETRY_S", 0.005)
    tries: dict[Key, int] = {A: 0, B: 0}

    async def work(key: Key) -> None:
        tries[key] += 1
        if key == A and tries[A] < 3:
            raise ApiError(503, "later") if tries[A] == 1 else ValueError("a bug")

    async def story() -> None:
        queue = WorkQueue(min_interval_s=0.0)
        runner = asyncio.create_task(queue.run(work, num_workers=1))
        queue.add(A)
        queue.add(B)
        await until(lambda: tries == {A: 3, B: 1} and queue.idle)
        runner.cancel()

    asyncio.run(story())


def test_work_may_ask_to_look_again_and_the_earlier_wish_counts() -> None:
    seen = 0

    async def work(key: Key) -> float | None:
        nonlocal seen
        seen += 1
        return 0.005 if seen < 3 else None

    async def story() -> None:
        queue = WorkQueue(min_interval_s=0.0)
        runner = asyncio.create_task(queue.run(work, num_workers=1))
        queue.add_after(A, 30.0)
        queue.add_after(A, 0.005)
        queue.add_after(A, 20.0)
        await until(lambda: seen == 3)
        runner.cancel()

    asyncio.run(story())


def test_two_operators_that_disagree_can_not_run_hot() -> None:
    seen: list[float] = []

    async def story() -> None:
        queue = WorkQueue(min_interval_s=0.05)

        async def work(key: Key) -> None:
            seen.append(asyncio.get_running_loop().time())
            queue.add(key)  # its own write comes back at once

        runner = asyncio.create_task(queue.run(work, num_workers=2))
        queue.add(A)
        await until(lambda: len(seen) == 4)
        runner.cancel()

    asyncio.run(story())
    assert all(later - earlier >= 0.045 for earlier, later in pairwise(seen))


# The cache.


def child(version: int, *, uid: str = "u", name: str = "chat-config", **meta: Any) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version),
            "labels": names.labels("chat"), **meta,
        },
    }  # fmt: skip


def test_an_older_version_never_replaces_a_newer_one() -> None:
    cache, key = Cache(), Key("team", "chat")
    assert cache.put(child(5)) == key
    assert cache.put(child(5)) is None
    assert cache.put(child(4)) is None
    assert cache.put(child(6)) == key
    assert cache.drop(child(6, uid="another")) is None
    assert cache.drop(child(6)) == key
    assert cache.children(key) == {}


def test_a_complete_list_removes_ghosts_but_not_what_was_written_meanwhile() -> None:
    cache, key = Cache(), Key("team", "chat")
    cache.put(child(5, name="ghost"))
    cache.put(child(12, name="written-meanwhile", uid="w"))
    elsewhere = child(3, name="other", uid="o")
    elsewhere["metadata"]["namespace"] = "elsewhere"
    cache.put(elsewhere)
    assert cache.replace("ConfigMap", [child(4)], version="10", namespace="team") == {key}
    assert {ref.name for ref in cache.children(key)} == {"chat-config", "written-meanwhile"}
    assert cache.children(Key("elsewhere", "chat"))
    assert cache.put(child(9, name="ghost")) is None  # an event from before the list
    assert cache.put(child(11, name="new", uid="n")) == key


def test_what_is_not_ours_is_not_kept() -> None:
    cache = Cache()
    foreign = child(1)
    foreign["metadata"]["labels"][names.MANAGED_BY] = "Helm"
    assert cache.put(foreign) is None
    assert cache.known() == []


def test_gateways_of_services_that_another_operator_looks_after_are_left_alone(
    manifest: Make,
) -> None:
    cache = Cache()
    cache.put(manifest())
    for number, service in enumerate(("chat", "others")):
        labels = names.labels(service, names.GATEWAY)
        pod = child(number, uid=service, name=f"{service}-gateway", labels=labels)
        cache.put(pod | {"kind": "Pod"})
    assert [pod["metadata"]["uid"] for pod in cache.pods_of(names.GATEWAY)] == ["chat"]
    assert cache.pods_of(names.REPLICA) == []


# The Lease.


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_lease(cluster: Fake, clock: Clock, identity: str) -> Lease:
    return Lease(cluster, namespace="sys", name="op", identity=identity, clock=clock)


def holder(cluster: Fake) -> str:
    spec: Obj = cluster.objects["Lease", "sys", "op"]["spec"]
    return str(spec["holderIdentity"])


async def one_round(lease: Lease) -> bool:
    """What `keep` does once, without its sleep."""
    start_s = lease._clock()
    held = await lease._acquire_or_renew()
    if held:
        lease._renewed_s = start_s
        lease.leading.set()
    return held


def test_one_leads_and_another_takes_over_when_it_falls_silent(cluster: Fake) -> None:
    async def story() -> None:
        clock = Clock()
        first, second = a_lease(cluster, clock, "one"), a_lease(cluster, clock, "two")
        assert await one_round(first)
        assert not await one_round(second)
        clock.now_s += DURATION_S - 1
        assert await one_round(first)  # renewed: seen by the second as news
        assert not await one_round(second)
        clock.now_s += DURATION_S - 1
        assert not await one_round(second)
        assert not first.valid()  # it may not write, long before somebody else may
        clock.now_s += 2
        assert await one_round(second)
        assert holder(cluster) == "two"
        assert not await one_round(first)  # it sees that it is somebody else's
        assert not first.valid()
        assert second.valid()

    asyncio.run(story())


def test_a_released_lease_is_taken_at_once(cluster: Fake) -> None:
    async def story() -> None:
        clock = Clock()
        first, second = a_lease(cluster, clock, "one"), a_lease(cluster, clock, "two")
        assert await one_round(first)
        assert not await one_round(second)
        await first.release()
        assert not first.valid()
        assert await one_round(second)

    asyncio.run(story())


def test_two_that_start_together_do_not_both_lead(cluster: Fake) -> None:
    async def story() -> None:
        clock = Clock()
        leases = [a_lease(cluster, clock, name) for name in ("one", "two", "three")]
        rounds = await asyncio.gather(*map(one_round, leases), return_exceptions=True)
        assert [r for r in rounds if r is True] == [True]
        assert sum(lease.valid() for lease in leases) == 1

    asyncio.run(story())


def test_a_leader_that_can_not_renew_ends_itself(
    cluster: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloserve_operator.lease.RENEW_S", 0.001)
    monkeypatch.setattr("sloserve_operator.lease.STANDBY_S", 0.001)

    async def story() -> None:
        clock = Clock()
        lease = a_lease(cluster, clock, "one")
        lost = asyncio.Event()
        keeper = asyncio.create_task(lease.keep(lost.set))
        await asyncio.wait_for(lease.leading.wait(), 60)
        cluster.fail = lambda verb, kind, name: ApiError(0, "no connection")
        await asyncio.sleep(0.01)
        assert not lost.is_set()
        clock.now_s += 10.0
        await asyncio.wait_for(lost.wait(), 60)
        await keeper

    asyncio.run(story())


def test_leases_are_renewed_without_reading(cluster: Fake) -> None:
    async def story() -> None:
        lease = a_lease(cluster, Clock(), "one")
        await one_round(lease)
        reads, writes = cluster.reads, len(cluster.writes)
        await one_round(lease)
        assert cluster.reads == reads
        assert cluster.writes[writes:] == [("replace", LEASE.kind, "op")]

    asyncio.run(story())
