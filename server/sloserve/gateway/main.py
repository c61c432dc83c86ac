"""`sloserve gateway`: one gateway process."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

from sloserve.errors import BadInput, Reason
from sloserve.gateway.app import create_app, create_internal_app
from sloserve.gateway.core import Core, new_session
from sloserve.gateway.keys import Key, load_keys
from sloserve.gateway.settings import Settings
from sloserve.gateway.sources import Source, make_source
from sloserve.http.config import load_manifest
from sloserve.http.serve import Listener, Stop, listen_on, run, serving, url_of
from sloserve.http.tracing import NO_TRACER, Tracer, make_tracer
from sloserve.http.watch import Watched
from sloserve.slo import ServiceSpec

log = logging.getLogger(__name__)

ANSWERED_GRACE_S = 5.0
"""Beyond the drain's timeout: what the last words of an answer get to reach their reader."""
LINGER_S = 6.0
"""
Kept-alive connections are not closed at once when the gateway is told to stop: a request could be
on its way on each. In this time they bring one more, and its answer tells them to close; OpenAI's
clients use none that was idle for longer than 5 s.
"""
EXPIRY_S = 0.1
"""Between two looks for answers that are still open when the time to drain is over."""


def run_gateway(args: argparse.Namespace) -> int:
    """The command: flags in, exit code out."""
    return serve_gateway(
        args.config,
        listen=args.listen,
        internal=args.internal,
        replicas=args.replicas,
        keys=args.keys,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        tracing=args.tracing,
    )


def serve_gateway(
    config: Path,
    *,
    listen: str,
    internal: str,
    replicas: str,
    keys: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tracing: bool | None = None,
    settings: Settings | None = None,
) -> int:
    """
    Serve until SIGTERM or SIGINT; the exit code.

    `config` is the resolved service spec, `replicas` a list, a file or a DNS name
    (`sources.make_source`). Config and keys are watched: changes apply live. `tracing` as in
    `http.tracing`. Raises BadInput for bad input and Failed when a port is taken, before anything
    is served.
    """
    if (tls_cert is None) != (tls_key is None):
        raise BadInput("TLS needs both --tls-cert and --tls-key")
    for path, flag in ((tls_cert, "--tls-cert"), (tls_key, "--tls-key")):
        if path is not None and not path.is_file():
            raise BadInput(f"no such file: {path}", field=flag)
    spec = Watched(config, load_manifest)
    ring = Watched(keys, load_keys) if keys is not None else None
    source = make_source(replicas)
    name = f"{socket.gethostname()}-{os.getpid()}"
    tracer = make_tracer(
        "gateway", flag=tracing, environ=os.environ, service=spec.value.name, instance=name
    )
    public = listen_on(listen)
    inside = listen_on(internal)
    tls = (str(tls_cert), str(tls_key)) if tls_cert is not None else (None, None)
    try:
        return run(_main(spec, ring, source, public, inside, tls, settings or Settings(), tracer))
    finally:
        tracer.close()


async def _main(
    spec: Watched[ServiceSpec],
    ring: Watched[tuple[Key, ...]] | None,
    source: Source,
    public: socket.socket,
    inside: socket.socket,
    tls: tuple[str | None, str | None],
    settings: Settings,
    tracer: Tracer,
) -> int:
    stop = Stop()
    stop.install()
    async with new_session(settings) as session:
        keys = ring.value if ring is not None else None
        core = Core(
            spec.value, source, session=session, keys=keys, settings=settings, tracer=tracer
        )
        work: list[Coroutine[Any, Any, None]] = [core.run(), spec.follow(core.apply)]
        work.append(_end_late_answers(core, stop))
        if ring is not None:
            work.append(ring.follow(lambda keys: _replace_keys(core, keys)))
        async with _running(work, stop), serving([Listener(create_internal_app(core), inside)]):
            listener = Listener(create_app(core), public, tls_cert=tls[0], tls_key=tls[1])
            log.info(
                "gateway is up",
                extra={
                    "service": spec.value.name,
                    "url": url_of(public, tls=tls[0] is not None),
                    "internal_url": url_of(inside),
                    "generation": spec.value.generation,
                    "tracing": tracer is not NO_TRACER,
                },
            )
            _spare_the_collector()
            await _serve_public(core, listener, stop)
    return stop.exit_code


def _replace_keys(core: Core, keys: tuple[Key, ...]) -> None:
    core.keyring.replace(keys)
    log.info("keys applied", extra={"num_keys": len(keys)})


def _spare_the_collector() -> None:
    """
    What is there at the start stays: a full collection would stop every stream for tens of
    milliseconds to look at modules.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _serve_public(core: Core, listener: Listener, stop: Stop) -> None:
    """Until told to stop, and then until every answer is out, its time is up, or told again."""

    async def serve() -> None:
        drain_s = core.spec.drain_timeout_s
        linger_s = min(LINGER_S, drain_s)
        grace_s = drain_s - linger_s + ANSWERED_GRACE_S
        async with serving([listener], grace_s=grace_s) as public:
            await stop.asked.wait()
            core.draining = True
            log.info("drain begins", extra={"num_open": len(core.open)})
            public.stop_listening()
            await stop.drained(lambda: public.num_connections == 0, timeout_s=linger_s)
        log.info("drain ends", extra={"num_open": len(core.open)})

    served = asyncio.create_task(serve())
    at_once = asyncio.create_task(stop.at_once.wait())
    done, left = await asyncio.wait({served, at_once}, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    if served in done:
        served.result()


async def _end_late_answers(core: Core, stop: Stop) -> None:
    """What is still open when the time to drain is over ends with an error that says so."""
    await stop.asked.wait()
    await asyncio.sleep(core.spec.drain_timeout_s)
    while True:
        for exchange in list(core.open):
            exchange.end(Reason.DRAINING)
        await asyncio.sleep(EXPIRY_S)


@contextlib.asynccontextmanager
async def _running(work: Sequence[Coroutine[Any, Any, None]], stop: Stop) -> AsyncIterator[None]:
    """Run these beside the block, until its end; without one of them the gateway stops too."""
    tasks = [asyncio.create_task(one) for one in work]

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the gateway can't go on", exc_info=error)
            stop.exit_code = 1
            stop.asked.set()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
