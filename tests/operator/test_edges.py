"""Everything that speaks HTTP: gateways, Events, web, the API client."""

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sloserve.errors import BadInput, Failed
from sloserve.metrics import OPERATOR, Kind
from sloserve_operator import names
from sloserve_operator.api import Key, Obj
from sloserve_operator.cluster import ApiError, NotLeading
from sloserve_operator.figures import Figures
from sloserve_operator.notices import NORMAL, WARNING, Notice
from sloserve_operator.observed import Now
from sloserve_operator.polling import Poller, _Told
from sloserve_operator.posting import Poster
from sloserve_operator.settings import OperatorSettings
from sloserve_operator.web import parse_listen, serving

Fake = Any
Make = Callable[..., Obj]


async def until(true: Callable[[], bool]) -> None:
    """Wait for what is asserted."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.002)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# Polling gateways.


def gateway_pod(uid: str, **status: Any) -> Obj:
    meta = {"name": uid, "namespace": "team", "uid": uid,
            "labels": names.labels("chat", names.GATEWAY)}  # fmt: skip
    ready = [{"type": "Ready", "status": "True"}]
    return {"kind": "Pod", "metadata": meta,
            "status": {"podIP": "127.0.0.1", "conditions": ready} | status}  # fmt: skip


def test_gateways_are_asked_and_only_news_is_passed_on(report: Make) -> None:
    answers: dict[str, Any] = {"body": report(), "status": 200, "asked": 0}

    async def handle(request: web.Request) -> web.Response:
        answers["asked"] += 1
        return web.json_response(answers["body"], status=answers["status"])

    async def story() -> None:
        app = web.Application()
        app.add_routes([web.get("/report", handle)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        clock, pods = Clock(), [gateway_pod("g1")]
        changed: list[Key] = []
        poller = Poller(
            gateways=lambda: pods, asleep=lambda key: False, changed=changed.append,
            clock=clock, poll_s=10.0, port=runner.addresses[0][1],
        )  # fmt: skip
        task = asyncio.create_task(poller.run())
        try:
            await until(lambda: len(changed) == 1)
            assert changed == [Key("team", "chat")]
            assert poller.fresh(pods)["g1"].service == "chat"
            answers["body"] = report(replicas=[])  # the same again
            clock.now_s += 11
            await until(lambda: answers["asked"] == 2)
            answers["body"] = report(pending=3)
            clock.now_s += 11
            await until(lambda: len(changed) == 2)
            assert poller.fresh(pods)["g1"].num_pending == 3
            answers["status"] = 500  # a bad answer leaves the last good one, for a while
            clock.now_s += 11
            await until(lambda: answers["asked"] == 4)
            assert poller.fresh(pods)
            clock.now_s += 60
            assert not poller.fresh(pods)
            await until(lambda: len(changed) == 3)  # that nothing is known any more is news
        finally:
            task.cancel()
            await runner.cleanup()

    asyncio.run(story())


def test_many_that_are_asked_often_do_not_keep_others_from_being_asked(report: Make) -> None:
    """More than can be asked at once, all of services that sleep."""
    clock, pods = Clock(), [gateway_pod(f"g{number}") for number in range(80)]

    async def handle(request: web.Request) -> web.Response:
        clock.now_s += 0.2  # 32 answers later the first of them is due again
        return web.json_response(report())

    async def story() -> None:
        app = web.Application()
        app.add_routes([web.get("/report", handle)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        poller = Poller(
            gateways=lambda: pods, asleep=lambda key: True, changed=lambda key: None,
            clock=clock, poll_s=10.0, port=runner.addresses[0][1],
        )  # fmt: skip
        task = asyncio.create_task(poller.run())
        try:
            await until(lambda: len(poller.fresh(pods)) == len(pods))
        finally:
            task.cancel()
            await runner.cleanup()

    asyncio.run(story())


def test_gateways_that_are_not_ready_are_not_asked() -> None:
    poller = Poller(
        gateways=lambda: [gateway_pod("g1", conditions=[]), gateway_pod("g2", podIP=None)],
        asleep=lambda key: False, changed=lambda key: None, clock=Clock(), poll_s=10.0,
    )  # fmt: skip
    assert poller._due() == []


def test_gateways_of_one_service_are_asked_together_and_others_when_they_are_due() -> None:
    clock = Clock()
    pods = [gateway_pod("g1"), gateway_pod("g2"), gateway_pod("g3")]
    other = gateway_pod("o1")
    other["metadata"]["labels"] = other["metadata"]["labels"] | {names.INSTANCE: "other"}
    poller = Poller(
        gateways=lambda: [*pods, other], asleep=lambda key: False, changed=lambda key: None,
        clock=clock, poll_s=10.0,
    )  # fmt: skip
    for pod, due_s in ((pods[0], 12.0), (pods[1], 9.5), (pods[2], 16.0), (other, 10.5)):
        poller._told[pod["metadata"]["uid"]] = _Told(Key("team", "chat"), 0.0, due_s)
    clock.now_s = 9.0
    assert poller._due() == []
    clock.now_s = 10.0
    assert [pod["metadata"]["uid"] for pod in poller._due()] == ["g2", "g1"]


# Events.


def test_the_same_event_is_counted_instead_of_repeated(
    cluster: Fake, manifest: Make, moment: Callable[[float], Now]
) -> None:
    notice = Notice(WARNING, "Missed", "fast 80%")

    async def story() -> None:
        poster = Poster(cluster, wrote=lambda verb: None)
        await poster.post(manifest(), [notice], moment(0))
        await poster.post(manifest(), [notice], moment(4))  # too soon
        await poster.post(manifest(), [notice], moment(20))
        (event,) = cluster.all("Event")
        assert (event["count"], event["type"], event["reason"]) == (2, "Warning", "Missed")
        assert event["involvedObject"]["uid"] == "uid-of-chat"
        assert event["lastTimestamp"] > event["firstTimestamp"]
        cluster.fail = lambda verb, kind, name: ApiError(403, "no right")
        await poster.post(manifest(), [Notice(WARNING, "Other", "x")], moment(40))

    asyncio.run(story())


def test_news_of_two_looks_at_a_gateway_are_two_events(
    cluster: Fake, manifest: Make, moment: Callable[[float], Now]
) -> None:
    async def story() -> None:
        poster = Poster(cluster, wrote=lambda verb: None)
        told = ["1 replicas load: starting", "1 replicas load: fetching the model"]
        gap_s = 0.95 * OperatorSettings().poll_s  # a look can be a little early
        for number, text in enumerate(told):
            await poster.post(manifest(), [Notice(NORMAL, "Loading", text)], moment(gap_s * number))
        assert [event["message"] for event in cluster.all("Event")] == told

    asyncio.run(story())


# The web server and the metrics.


def test_the_operator_says_whether_it_is_alive_leads_and_counts() -> None:
    async def story() -> None:
        figures, state = Figures(), {"problem": "", "leads": False}
        figures.add("sloserve_operator_reconciles_total", "changed")
        async with (
            serving("127.0.0.1:0", figures=figures, alive=lambda: str(state["problem"]),
                    leading=lambda: bool(state["leads"])) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        ):  # fmt: skip
            assert (await session.get("/livez")).status == 200
            assert await (await session.get("/readyz")).text() == "standing by"
            state.update(problem="deaf", leads=True)
            assert (await session.get("/livez")).status == 503
            assert await (await session.get("/readyz")).text() == "leading"
            text = await (await session.get("/metrics")).text()
            assert 'sloserve_operator_reconciles_total{result="changed"} 1.0' in text
            with pytest.raises(Failed, match="can't listen"):
                async with serving(
                    f"127.0.0.1:{port}", figures=figures, alive=str, leading=lambda: True
                ):
                    pass

    asyncio.run(story())


@pytest.mark.parametrize("text", ["x", "127.0.0.1", ":99999"])
def test_an_address_without_a_port_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="HOST:PORT"):
        parse_listen(text)


def test_services_are_counted_by_condition(manifest: Make) -> None:
    service = manifest()
    condition = {"type": "SLOMet", "status": "False"}
    service["status"] = {"ready": "1/2", "conditions": [condition]}
    figures = Figures()
    figures.services([service, copy.deepcopy(service), manifest()])
    text = figures.text().decode()
    assert 'sloserve_operator_services{condition="SLOMet",status="False"} 2.0' in text
    assert 'sloserve_operator_replicas{state="desired"} 4.0' in text
    assert 'sloserve_operator_replicas{state="ready"} 2.0' in text


def test_counters_are_there_before_the_first_of_anything() -> None:
    text = Figures().text().decode()
    for metric in OPERATOR:
        assert metric.kind is not Kind.COUNTER or f"\n{metric.name}{{" in text
    assert 'sloserve_operator_reconciles_total{result="failed"} 0.0' in text


# The real client, against the HTTP it must speak.


def test_the_client_speaks_server_side_apply_and_reads_refusals() -> None:
    pytest.importorskip("kubernetes.aio")
    from kubernetes.aio import client

    from sloserve_operator.api import CHILD_KINDS, POD, Ref
    from sloserve_operator.kube import Kube

    asked: list[tuple[str, str, dict[str, str], str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        text = await request.text()
        body = json.loads(text) if text else None
        asked.append((request.method, request.path, dict(request.query),
                      request.headers.get("Content-Type", ""), body))  # fmt: skip
        if request.path.endswith("/missing"):
            return web.json_response({"message": "not found"}, status=404)
        if request.path.endswith("/ending"):
            causes = {"causes": [{"reason": "NamespaceTerminating"}]}
            return web.json_response({"message": "no", "details": causes}, status=403)
        if request.query.get("limit"):
            more = "" if request.query.get("continue") else "next"
            item = {"metadata": {"name": f"p{more}", "managedFields": [1]}}
            meta = {"continue": more, "resourceVersion": "7"}
            return web.json_response({"metadata": meta, "items": [item]})
        return web.json_response(body or {"metadata": {"name": "x"}, "resources": []})

    async def story() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        settings = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        kube = Kube(client.ApiClient(settings))
        config = CHILD_KINDS["ConfigMap"]
        obj = {"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "t"}}
        try:
            await kube.apply(config, obj, force=False, dry_run=True)
            method, path, query, content, body = asked[-1]
            assert (method, path) == ("PATCH", "/api/v1/namespaces/t/configmaps/c")
            assert content == "application/apply-patch+yaml"
            assert query == {"fieldManager": "sloserve-operator", "force": "false",
                             "dryRun": "All"}  # fmt: skip
            assert body["metadata"]["name"] == "c"
            await kube.merge(POD, "t", "p", {"metadata": {"uid": "u"}})
            assert asked[-1][3] == "application/merge-patch+json"
            await kube.delete(config, "t", Ref("ConfigMap", "c"), uid="u")
            assert asked[-1][4]["preconditions"] == {"uid": "u"}
            await kube.delete(config, "t", Ref("ConfigMap", "missing"), uid="u")
            assert await kube.get(config, "t", "missing") is None
            with pytest.raises(ApiError) as refused:
                await kube.get(config, "t", "ending")
            assert refused.value.terminating
            listed = await kube.list_all(POD, None, labels="a=b")
            assert [item["kind"] for item in listed.items] == ["Pod", "Pod"]
            assert all("managedFields" not in item["metadata"] for item in listed.items)
            assert listed.version == "7"
            assert not await kube.knows(CHILD_KINDS["PodMonitor"])
            kube.may_write = lambda: False
            with pytest.raises(NotLeading):
                await kube.apply(config, obj)
        finally:
            await kube.close()
            await runner.cleanup()

    asyncio.run(story())
