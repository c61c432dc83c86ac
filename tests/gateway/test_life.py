"""A request's life between client, gateway and replicas."""

import asyncio
import collections
import itertools
from typing import Any

import aiohttp
import pytest

from sloserve.gateway import replicas as replicas_module
from sloserve.gateway.settings import Settings

Make = Any
"""A builder from conftest."""


def test_a_stream_passes_without_annotations_and_explains_itself(
    gateway: Make, replica: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("r7")) as world:
            answer = await world.ask(stream=True, headers={"x-request-id": "mine"})
            assert answer.status == 200
            assert [e["choices"][0]["delta"]["content"] for e in answer.events[:-1]] == [
                "w0 ",
                "w1 ",
                "w2 ",
            ]
            assert answer.events[-1] == "[DONE]"
            assert ": n=" not in answer.text
            told = {k: v for k, v in answer.headers.items() if k.startswith("x-")}
            assert told == {
                "x-request-id": "mine",
                "x-slo-class": "chat",
                "x-slo-decision": "admitted",
                "x-slo-ttft-ms": "5000",
                "x-slo-replica": "r7",
                "x-slo-hops": "1",
            }
            assert world.judged() == (1, 1, 1, 1)

    asyncio.run(story())


def test_the_body_passes_unchanged_and_the_wire_goes_with_it(gateway: Make, replica: Make) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            body = b'{"messages": [{"role":"user","content":"hi"}],  "unknown": [1, 2.50]}'
            headers = {
                "x-sloserve-last-hop": "1",
                "x-sloserve-age-ms": "99999",
                "x-sloserve-promise": "{}",
                "authorization": "Bearer secret",
                "x-session-id": "s1",
            }
            answer = await world.post("/v1/chat/completions", body, headers)
            assert answer.status == 200
            asked = world.replicas[0].asked[0]
            assert asked.body == body
            assert float(asked.headers["x-sloserve-age-ms"]) < 5000
            assert '"class":"chat"' in asked.headers["x-sloserve-promise"]
            assert asked.headers["x-session-id"] == "s1"
            assert "authorization" not in asked.headers
            assert asked.headers["x-request-id"] == answer.headers["x-request-id"]

    asyncio.run(story())


def test_a_decline_goes_on_to_the_next_replica_with_the_same_arrival(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        no = act(status=429, decision="declined", reason="TTFT", first_s=0.05)
        shared = collections.deque([no, no])
        replicas = [replica(name, acts=shared) for name in "abc"]
        async with gateway(*replicas) as world:
            answer = await world.ask(stream=True)
            assert answer.status == 200
            assert answer.headers["x-slo-hops"] == "3"
            assert answer.headers["x-slo-decision"] == "admitted"
            asked = [a for r in world.replicas for a in r.asked]
            ages = sorted(float(a.headers["x-sloserve-age-ms"]) for a in asked)
            assert len(ages) == 3
            assert all(b >= a + 45 for a, b in itertools.pairwise(ages))
            assert world.judged() == (1, 1, 1, 1)

    asyncio.run(story())


def test_only_the_last_hop_may_degrade(gateway: Make, replica: Make, act: Make, spec: Make) -> None:
    async def story() -> None:
        replicas = [replica(f"r{i}") for i in range(3)]
        for one in replicas:
            one.default = act(status=429, decision="declined", reason="TTFT")
        async with gateway(*replicas, spec=spec(maxHops=2)) as world:
            answer = await world.ask(stream=True)
            assert answer.status == 429
            assert answer.headers["x-slo-hops"] == "2"
            asked = [a for r in world.replicas for a in r.asked]
            assert sorted(a.headers["x-sloserve-last-hop"] for a in asked) == ["0", "1"]

    asyncio.run(story())


def test_a_decline_of_the_last_hop_passes_to_the_client(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica()) as world:
            world.replicas[0].default = act(status=429, decision="declined", reason="TPOT")
            answer = await world.ask(stream=True)
            assert answer.status == 429
            assert answer.headers["retry-after"] == "7"
            assert answer.headers["x-slo-decision"] == "declined"
            assert answer.headers["x-slo-reason"] == "TPOT"
            assert answer.json["error"]["code"] == "TPOT"
            labels = ("chat", "declined", "refused", "TPOT")
            assert world.count("sloserve_requests_total", *labels) == 1
            assert world.judged() == (1, 0, 0, 0)

    asyncio.run(story())


def test_a_replica_that_dies_before_its_first_byte_costs_nothing(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        replicas = [replica("a"), replica("b")]
        for one in replicas:
            one.acts.append(act(die_after=0))
        async with gateway(*replicas) as world:
            answer = await world.ask(stream=True)
            assert answer.status == 200
            assert answer.events[-1] == "[DONE]"
            assert world.judged() == (1, 1, 1, 1)

    asyncio.run(story())


def test_a_replica_killed_mid_stream_ends_with_an_explicit_error_and_the_next_is_served(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].acts.append(act(tokens=5, die_after=2))
            answer = await world.ask(stream=True)
            assert answer.status == 200
            last = answer.events[-1]
            assert last["choices"][0]["finish_reason"] == "error"
            assert last["error"]["code"] == "ReplicaLost"
            assert last["id"] == "x1"
            assert len(answer.events) == 3
            assert world.judged() == (1, 0, 0, 0)
            labels = ("chat", "admitted", "failed", "ReplicaLost")
            assert world.count("sloserve_requests_total", *labels) == 1
            again = await world.ask(stream=True)
            assert again.events[-1] == "[DONE]"
            assert world.judged() == (2, 1, 1, 1)

    asyncio.run(story())


def test_a_request_that_kills_replicas_is_given_up(gateway: Make, replica: Make, act: Make) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].default = act(die_after=0)
            answer = await world.ask(stream=True)
            assert answer.status == 503
            assert answer.headers["x-slo-reason"] == "ReplicaLost"
            assert len(world.replicas[0].asked) == 3

    asyncio.run(story())


def test_an_error_that_the_replica_tells_is_counted_as_failed(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].acts.append(act(tokens=5, break_after=2))
            answer = await world.ask(stream=True)
            assert answer.events[2]["choices"][0]["finish_reason"] == "error"
            assert world.judged() == (1, 0, 0, 0)

    asyncio.run(story())


def test_a_client_that_leaves_cancels_upstream_at_once(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            upstream = world.replicas[0]
            upstream.default = act(tokens=1000, gap_s=0.01)
            url = world.url + "/v1/chat/completions"
            body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
            response = await world.session.post(url, json=body)
            await response.content.readany()
            response.close()
            await world.until(lambda: upstream.asked[0].cancelled)
            await world.until(lambda: not world.core.open)
            labels = ("chat", "admitted", "cancelled", "ClientGone")
            assert world.count("sloserve_requests_total", *labels) == 1
            assert world.judged() == (0, 0, 0, 0)  # everything due had come

    asyncio.run(story())


def test_a_client_that_leaves_after_a_missed_due_time_is_a_missed_promise(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].default = act(first_s=30.0)
            url = world.url + "/v1/chat/completions"
            body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
            headers = {"x-slo-class": "strict"}
            patience = aiohttp.ClientTimeout(total=0.7)
            with pytest.raises(TimeoutError):
                await world.session.post(url, json=body, headers=headers, timeout=patience)
            await world.until(lambda: not world.core.open)
            assert world.judged("strict") == (1, 0, 0, 0)
            await world.until(lambda: world.replicas[0].asked[0].cancelled)

    asyncio.run(story())


def test_a_bad_request_is_passed_on_and_not_counted(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].default = act(status=400, decision="")
            answer = await world.ask(stream=True, temperature="hot")
            assert answer.status == 400
            assert world.judged() == (0, 0, 0, 0)
            assert world.count("sloserve_requests_total", "chat", "none", "refused", "") == 1

    asyncio.run(story())


def test_a_client_that_leaves_on_the_end_mark_had_its_whole_answer(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        async with gateway(replica("a")) as world:
            world.replicas[0].default = act(linger_s=0.5)
            url = world.url + "/v1/chat/completions"
            body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
            response = await world.session.post(url, json=body)
            seen = b""
            while b"[DONE]" not in seen:
                seen += await response.content.readany()
            response.close()
            await world.until(lambda: not world.core.open)
            assert world.judged() == (1, 1, 1, 1)
            assert world.count("sloserve_requests_total", "chat", "admitted", "finished", "") == 1

    asyncio.run(story())


def test_a_slow_reader_is_bounded_cut_off_and_hurts_nobody_else(
    gateway: Make, replica: Make, act: Make
) -> None:
    async def story() -> None:
        settings = Settings(poll_s=0.02, slow_reader_s=0.3)
        async with gateway(replica("a"), settings=settings) as world:
            upstream = world.replicas[0]
            upstream.acts.append(act(tokens=4000, pad=10_000))  # 40 MB
            body = b'{"messages":[],"stream":true}'
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
            host, port = world.url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(head % len(body) + body)
            await world.until(lambda: bool(upstream.asked))
            for _ in range(3):
                assert (await world.ask(stream=True)).status == 200
            await world.until(lambda: upstream.asked[0].cancelled)
            assert not upstream.asked[0].finished
            labels = ("chat", "admitted", "cancelled", "SlowReader")
            assert world.count("sloserve_requests_total", *labels) == 1
            writer.close()

    asyncio.run(story())


def test_a_replica_lost_without_a_word_loses_its_requests_in_time(
    gateway: Make, replica: Make, act: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        lost = replica("a", default=act(tokens=100, gap_s=10.0))
        async with gateway(lost) as world:
            streaming = asyncio.create_task(world.ask(stream=True))
            await world.until(
                lambda: any(e.ticket.judge and e.ticket.judge.num_tokens for e in world.core.open)
            )
            monkeypatch.setattr(replicas_module, "LOST_S", 0.3)  # not before its first token
            monkeypatch.setattr(replicas_module, "POLL_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
            lost.silent = True
            answer = await streaming
            assert answer.events[-1]["error"]["code"] == "ReplicaLost"
            lost.silent = False

    asyncio.run(story())
