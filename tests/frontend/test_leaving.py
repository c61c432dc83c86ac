"""Clients that go away, and what is left of their requests."""

import asyncio
import logging
import socket
import time
from typing import Any

import httpx
import openai
import pytest

from sloserve.frontend import answering


def test_a_client_that_hangs_up_in_a_stream_frees_its_blocks(running: Any) -> None:
    running.runner.step_s = 0.02
    body = {"prompt": "abc", "max_tokens": 400, "stream": True}
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
        assert running.scheduler.requests
    running.wait_for(lambda: not running.scheduler.requests)
    running.scheduler.blocks.check_integrity()
    assert running.scheduler.blocks.num_free == running.scheduler.blocks.num_blocks


def test_a_client_that_hangs_up_before_its_answer_frees_its_blocks(running: Any) -> None:
    running.runner.step_s = 0.02
    host, _, port = running.url.removeprefix("http://").partition(":")
    body = b'{"prompt":"abc","max_tokens":400,"n":3}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(head + body)
        running.wait_for(lambda: len(running.scheduler.requests) == 3)
    running.wait_for(lambda: not running.scheduler.requests)
    running.scheduler.blocks.check_integrity()


def test_a_task_that_is_cancelled_closes_its_stream(running: Any) -> None:
    running.runner.step_s = 0.02

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x") as client:
            stream = await client.completions.create(
                model="sim", prompt="abc", max_tokens=400, stream=True
            )
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(main())
    running.wait_for(lambda: not running.scheduler.requests)


def test_the_others_go_on_when_one_leaves(running: Any) -> None:
    running.runner.step_s = 0.002
    body = {"prompt": "abc", "max_tokens": 60, "stream": True}
    with running.client.stream("POST", "/v1/completions", json=body) as kept:
        with (
            httpx.Client(base_url=running.url, timeout=60) as other,
            other.stream("POST", "/v1/completions", json={**body, "max_tokens": 400}) as left,
        ):
            next(left.iter_lines())
        lines = [line for line in kept.iter_lines() if line.startswith("data: {")]
    assert len(lines) == 60


def test_a_cancel_is_counted_and_not_an_error(running: Any) -> None:
    running.runner.step_s = 0.02
    body = {"prompt": "abc", "max_tokens": 400, "stream": True}
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    running.wait_for(lambda: not running.scheduler.requests)
    cancelled = 'decision="admitted",model="sim",outcome="cancelled",reason="ClientGone"'
    assert running.metric("sloserve_replica_requests_total{" + cancelled) == 1
    assert running.metric('sloserve_replica_slo_requests_total{model="sim"') == 0


def test_a_running_stream_survives_the_drain(running: Any) -> None:
    running.runner.step_s = 0.002
    body = {"prompt": "abc", "max_tokens": 50, "stream": True}
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        running.on_loop(running.replica.drain)
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert len(rest) >= 50 - 1


def test_the_time_to_the_socket_reaches_the_planner(running: Any) -> None:
    running.post("/v1/completions", json={"prompt": "abc", "max_tokens": 200, "stream": True})
    began_s = time.monotonic()
    running.wait_for(lambda: running.scheduler.way_out_s > 0)
    assert running.scheduler.way_out_s < began_s
    assert running.metric("sloserve_emission_lag_seconds") == running.scheduler.way_out_s


def test_a_client_that_stops_reading_does_not_look_like_a_slow_way_out(running: Any) -> None:
    pause_s = 2.0
    host, _, port = running.url.removeprefix("http://").partition(":")
    body = b'{"prompt":"abc","max_tokens":400,"stream":true,"n":4,"logprobs":1}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.socket() as sock:
        sock.settimeout(60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect((host, int(port)))
        sock.sendall(head + body)
        time.sleep(pause_s)
        total, end = 0, b""
        while b"[DONE]" not in end:
            data = sock.recv(65536)
            assert data, "it ended too soon"
            total, end = total + len(data), end[-8:] + data
    assert total > 300_000
    running.post("/v1/completions", json={"prompt": "abc", "max_tokens": 100, "stream": True})
    assert running.scheduler.way_out_s < pause_s / 2


def test_a_client_that_reads_nothing_is_cut_off(
    running: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=answering.log.name)
    monkeypatch.setattr(answering, "SLOW_READER_S", 0.2)
    monkeypatch.setattr(answering, "WATCH_S", 0.02)
    host, _, port = running.url.removeprefix("http://").partition(":")
    body = b'{"prompt":"abc","max_tokens":400,"stream":true,"n":4,"logprobs":1}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.socket() as sock:
        sock.settimeout(60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect((host, int(port)))
        sock.sendall(head + body)
        running.wait_for(lambda: len(running.runner.asked) == 4)
        running.wait_for(lambda: "reads nothing, cut off" in caplog.text)
        running.wait_for(lambda: not running.scheduler.requests)
        received = b""
        while data := sock.recv(65536):
            received += data
    assert received
    assert b"[DONE]" not in received


def test_a_client_that_hangs_up_in_its_own_body_is_no_error(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = running.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        time.sleep(0.1)
    assert running.client.get("/health").status_code == 200
    time.sleep(0.1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
