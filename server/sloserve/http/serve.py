"""Running HTTP servers: bind first, serve until told to stop, drain, close."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
import uvloop

from sloserve.errors import BadInput, Failed

log = logging.getLogger(__name__)

App = Callable[..., Any]
"""An ASGI application."""

EXIT_INTERRUPTED = 130
INHERITED = "fd:"
DRAIN_POLL_S = 0.05
CERTIFICATE_POLL_S = 1.0
BACKLOG = 2048


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT` or `:PORT` (host "": all addresses); port 0 takes a free one."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise BadInput(f"got {text!r}, allowed: HOST:PORT with a port from 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def listen_on(text: str) -> socket.socket:
    """
    A listening socket at `HOST:PORT` (`parse_listen`), or from `fd:N`: a bound socket that the
    parent process left open as descriptor N. Raises BadInput and Failed.
    """
    if not text.startswith(INHERITED):
        return bind(*parse_listen(text))
    try:
        sock = socket.socket(fileno=int(text.removeprefix(INHERITED)))
        sock.listen(BACKLOG)
    except (ValueError, OSError) as error:
        raise BadInput(f"got {text!r}: not a bound socket that was inherited: {error}") from None
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def bind(host: str, port: int) -> socket.socket:
    """
    A listening socket. Raises Failed with the address and what to do when it is taken.

    Binding comes before everything that takes time, so that a taken port is told at once.
    """
    sock = reserve(host, port)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _taken(host, port, error) from None
    return sock


def reserve(host: str, port: int) -> socket.socket:
    """
    A bound socket that doesn't listen yet: nobody else gets the port, and callers are refused.

    Host "" is every address: one socket for IPv6 and IPv4 where the machine has both, so that a
    pod is reached by whatever addresses its cluster gives it. Raises Failed when it is taken.
    """
    try:
        both = not host and socket.has_dualstack_ipv6()
        host = host or ("::" if both else "0.0.0.0")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if port:  # a server that was here a moment ago is no hindrance
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if both:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, port))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise _taken(host, port, error) from None
    sock.setblocking(False)
    return sock


def _taken(host: str, port: int, error: OSError) -> Failed:
    return Failed(
        f"can't listen on {host}:{port}: {error.strerror or error};"
        " stop what uses it, or choose another port (0 takes a free one)"
    )


def handed(sock: socket.socket) -> str:
    """What `listen_on` takes in a child that gets this socket passed."""
    return f"{INHERITED}{sock.fileno()}"


def port_of(sock: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(sock.getsockname()[1])


def url_of(sock: socket.socket, *, tls: bool = False) -> str:
    """The base URL of a listening socket, for people."""
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


@dataclass(frozen=True, slots=True)
class Listener:
    """An application and where it listens; TLS from two files."""

    app: App
    sock: socket.socket
    tls_cert: str | None = None
    tls_key: str | None = None


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: `Stop` decides."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    """Servers at work."""

    def __init__(self, servers: Sequence[_Server]) -> None:
        self._servers = servers

    @property
    def num_connections(self) -> int:
        """Open connections, idle ones included."""
        return sum(len(server.server_state.connections) for server in self._servers)

    def stop_listening(self) -> None:
        """Refuse new connections from now on; those that are there go on."""
        for server in self._servers:
            for listening in server.servers:
                listening.close()


@contextlib.asynccontextmanager
async def serving(listeners: Sequence[Listener], *, grace_s: float = 5.0) -> AsyncIterator[Serving]:
    """
    Serve while the block runs. On leaving, sockets and idle connections close, and open answers
    get `grace_s` seconds.
    """
    servers = [_Server(_config(listener, grace_s)) for listener in listeners]
    renewals: list[asyncio.Task[None]] = []
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener.sock]))
        for server, listener in zip(servers, listeners, strict=True)
    ]
    try:
        while not all(server.started for server in servers):
            for task in tasks:
                if task.done():
                    raise Failed(f"the HTTP server did not start: {task.exception()}")
            await asyncio.sleep(0.005)
        renewals = [
            asyncio.create_task(_renew_certificate(server.config.ssl, listener))
            for server, listener in zip(servers, listeners, strict=True)
            if server.config.ssl is not None
        ]
        yield Serving(servers)
    finally:
        for renewal in renewals:
            renewal.cancel()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)


def _config(listener: Listener, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        listener.app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        ssl_certfile=listener.tls_cert,
        ssl_keyfile=listener.tls_key,
    )


async def _renew_certificate(context: ssl.SSLContext, listener: Listener) -> None:
    """
    New connections get the certificate that is in the files now, until cancelled.

    Whoever renews it may write the two files one after the other: what does not fit yet is tried
    again, and the certificate in force stays.
    """
    assert listener.tls_cert is not None
    applied: tuple[object, ...] = _marks(listener)
    told: tuple[object, ...] = ()
    while True:
        await asyncio.sleep(CERTIFICATE_POLL_S)
        marks = _marks(listener)
        if marks == applied:
            continue
        try:
            context.load_cert_chain(listener.tls_cert, listener.tls_key)
        except (OSError, ssl.SSLError) as error:
            if marks != told:
                log.error("can't use the new certificate in %s: %s", listener.tls_cert, error)
            told = marks
        else:
            log.info("the certificate in %s was renewed", listener.tls_cert)
            applied = marks


def _marks(listener: Listener) -> tuple[object, ...]:
    """What changes when a certificate or its key is written; None for a file that is gone."""
    marks: list[object] = []
    for path in (listener.tls_cert, listener.tls_key):
        try:
            found = os.stat(path or "")
        except OSError:
            marks.append(None)
        else:
            marks.append((found.st_mtime_ns, found.st_ino, found.st_size))
    return tuple(marks)


class Stop:
    """SIGTERM and SIGINT ask to stop; a second one asks to stop at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self.exit_code = 0

    def install(self) -> None:
        """Listen to the signals; only in the main thread."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._got, signum)

    def _got(self, signum: signal.Signals) -> None:
        log.info("got %s", signum.name)
        if self.asked.is_set():
            self.at_once.set()
        self.exit_code = EXIT_INTERRUPTED if signum == signal.SIGINT else 0
        self.asked.set()

    async def drained(self, is_idle: Callable[[], bool], *, timeout_s: float) -> bool:
        """Wait until `is_idle`, a second signal, or the time is up; True when idle."""
        end_s = time.monotonic() + timeout_s
        while not is_idle():
            if self.at_once.is_set() or time.monotonic() > end_s:
                return False
            await asyncio.sleep(DRAIN_POLL_S)
        return True


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run a server's main coroutine on uvloop; its exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
