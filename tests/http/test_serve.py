"""Sockets and signals."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from sloserve.errors import BadInput, Failed
from sloserve.http import serve


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        (":9", ("", 9)),
        ("0.0.0.0:9", ("0.0.0.0", 9)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_listen_addresses_are_read(text: str, found: tuple[str, int]) -> None:
    assert serve.parse_listen(text) == found


@pytest.mark.parametrize("text", ["", "8000x", "host", "host:", "host:65536", "host:-1"])
def test_other_listen_addresses_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="allowed: HOST:PORT"):
        serve.parse_listen(text)


def test_a_taken_port_is_told_with_what_to_do() -> None:
    sock = serve.bind("127.0.0.1", 0)
    try:
        port = sock.getsockname()[1]
        with pytest.raises(Failed, match=f"can't listen on 127.0.0.1:{port}: .*choose another"):
            serve.bind("127.0.0.1", port)
    finally:
        sock.close()


def test_a_reserved_port_refuses_callers_until_its_heir_listens() -> None:
    with contextlib.closing(serve.reserve("127.0.0.1", 0)) as sock:
        address = ("127.0.0.1", serve.port_of(sock))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        heir = sock.dup()
        name = serve.handed(heir)
        heir.detach()
        with contextlib.closing(serve.listen_on(name)):
            socket.create_connection(address, timeout=5).close()
            with pytest.raises(Failed, match="choose another"):
                serve.bind(*address)


@pytest.mark.parametrize("text", ["fd:", "fd:x", "fd:-1", "fd:99999"])
def test_what_is_no_inherited_socket_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not a bound socket that was inherited"):
        serve.listen_on(text)


def has_address(host: str) -> bool:
    """Whether this machine has it: a container may know IPv6 and have no address of it."""
    with contextlib.suppress(Failed), contextlib.closing(serve.bind(host, 0)):
        return True
    return False


@pytest.mark.parametrize("has_both", [True, False])
def test_all_addresses_are_those_of_both_families_where_there_are_both(
    has_both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_both = has_both and socket.has_dualstack_ipv6()
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: has_both)
    with contextlib.closing(serve.bind(*serve.parse_listen(":0"))) as sock:
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", *(["::1"] if has_both and has_address("::1") else [])):
            with socket.create_connection((host, port), timeout=60):
                pass
        with pytest.raises(Failed, match="choose another"):
            serve.bind("", port)
        assert sock.family is (socket.AF_INET6 if has_both else socket.AF_INET)


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(Failed, match="can't listen on"):
        serve.bind("host.invalid", 0)


def test_two_applications_are_served_side_by_side_and_stop_together() -> None:
    socks = [serve.bind("127.0.0.1", 0) for _ in range(2)]
    urls = [serve.url_of(sock) for sock in socks]

    async def main() -> list[str]:
        async with (
            serve.serving([serve.Listener(hello, sock) for sock in socks]),
            httpx.AsyncClient() as client,
        ):
            return [(await client.get(url)).text for url in urls]

    assert asyncio.run(main()) == ["hello", "hello"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(urls[0])


def test_who_stops_listening_goes_on_with_the_connections_that_are_there() -> None:
    sock = serve.bind("127.0.0.1", 0)
    url = serve.url_of(sock)

    async def main() -> None:
        async with (
            serve.serving([serve.Listener(hello, sock)]) as running,
            httpx.AsyncClient() as client,
            httpx.AsyncClient() as late,
        ):
            assert (await client.get(url)).text == "hello"
            running.stop_listening()
            assert running.num_connections == 1
            assert (await client.get(url)).text == "hello"
            with pytest.raises(httpx.ConnectError):
                await late.get(url)
            await client.aclose()
            async with asyncio.timeout(60):
                while running.num_connections:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_first_signal_asks_and_the_second_insists() -> None:
    async def main() -> serve.Stop:
        stop = serve.Stop()
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.asked.wait(), 60)
        assert not stop.at_once.is_set()
        waiting = asyncio.create_task(stop.drained(lambda: False, timeout_s=60))
        os.kill(os.getpid(), signal.SIGTERM)
        assert not await asyncio.wait_for(waiting, 60)
        return stop

    assert asyncio.run(main()).exit_code == 0


def test_draining_ends_when_idle_or_when_time_is_up() -> None:
    async def main() -> tuple[bool, bool]:
        stop = serve.Stop()
        return (
            await stop.drained(lambda: True, timeout_s=60),
            await stop.drained(lambda: False, timeout_s=0),
        )

    assert asyncio.run(main()) == (True, False)


def write_certificate(folder: Path, authority: trustme.CA) -> int:
    """A new certificate for localhost in tls.crt and tls.key; its serial number."""
    made = authority.issue_cert("localhost")
    (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    (folder / "tls.key").write_bytes(made.private_key_pem.bytes())
    shown = ssl.PEM_cert_to_DER_cert((folder / "tls.crt").read_text())
    return hash(shown)


def test_a_renewed_certificate_holds_for_new_connections_and_half_of_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "CERTIFICATE_POLL_S", 0.01)
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    first = write_certificate(tmp_path, authority)
    sock = serve.bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    cert, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")

    async def shown() -> int:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, server_hostname="localhost"
        )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return hash(der)

    async def main() -> None:
        listener = serve.Listener(hello, sock, tls_cert=cert, tls_key=key)
        async with asyncio.timeout(60), serve.serving([listener]):
            assert await shown() == first
            Path(key).write_text("half of it")
            while "can't use the new certificate" not in caplog.text:
                await asyncio.sleep(0.01)
            assert await shown() == first
            second = write_certificate(tmp_path, authority)
            while await shown() != second:
                await asyncio.sleep(0.01)

    asyncio.run(main())
