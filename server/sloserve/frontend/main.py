"""`sloserve replica`: the server is up at once, the model when it is ready."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sloserve.engine.client import EngineClient
from sloserve.engine.events import Broken, Generate
from sloserve.engine.runner import Runner
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput, Failed
from sloserve.frontend.app import create_app
from sloserve.frontend.figures import NO_CLASS, Figures
from sloserve.frontend.loading import Loaded, is_simulated, load, make_scheduler, tool_format
from sloserve.frontend.replica import Clock, Progress, Replica, Served
from sloserve.frontend.wayout import WayOut
from sloserve.http import serve
from sloserve.http.config import load_manifest
from sloserve.http.tracing import Tracer, make_tracer
from sloserve.http.watch import Watched
from sloserve.slo import Promise, Stage
from sloserve.slo.flags import with_flags
from sloserve.slo.service import ServiceSpec

log = logging.getLogger(__name__)

PUMP_S = 1.0
FIRST_ANSWER_S = 300.0
FLUSH_S = 5.0
"""After the last token of a drain, what the answers get to reach their sockets."""


def run_replica(args: argparse.Namespace) -> int:
    """
    Run one replica until it is told to stop; its exit code.

    `args`: config, listen, policy, profile, name, overlap, and the flags of model and engine.
    Raises SloserveError when it can't start.
    """
    watched: Watched[ServiceSpec] | None = None
    if args.config is not None:
        watched = Watched(args.config, lambda path: read_spec(path, args))
        spec = watched.value
    else:
        spec = read_spec(None, args)
    if not is_simulated(spec):
        from sloserve.model.allocator import restart_with_malloc_settings

        restart_with_malloc_settings()
    replica = Replica(spec, name=args.name)
    tracer = make_tracer(
        "replica", flag=args.tracing, environ=os.environ, service=spec.name, instance=replica.name
    )
    sock = serve.listen_on(args.listen)
    print(f"replica {replica.name} of {spec.name}: {serve.url_of(sock)}", flush=True)
    try:
        code = serve.run(_run(replica, sock, args, watched, tracer))
    finally:
        tracer.close()
    if any(thread.name == LOADER and thread.is_alive() for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # a load can't be interrupted, and nothing of it is kept
    return code


def read_spec(path: Path | None, args: argparse.Namespace) -> ServiceSpec:
    """The manifest with the flags put over it. Raises BadInput."""
    if path is None and getattr(args, "model", None) is None:
        raise BadInput("give --config FILE (a manifest) or --model SOURCE, as builtin://tiny")
    return with_flags(None if path is None else load_manifest(path), args)


async def _run(
    replica: Replica,
    sock: socket.socket,
    args: argparse.Namespace,
    watched: Watched[ServiceSpec] | None,
    tracer: Tracer,
) -> int:
    stop = serve.Stop()
    stop.install()
    app = create_app(replica, tracer=tracer)
    engine = EngineClient(service=replica.spec.name, replica=replica.name)
    async with serve.serving([serve.Listener(app, sock)], grace_s=FLUSH_S), _engine_life(engine):
        tasks = [asyncio.create_task(_start(replica, engine, args))]
        tasks.append(
            asyncio.create_task(_pump(app.state.figures, app.state.way_out, replica.clock))
        )
        if watched is not None:
            tasks.append(asyncio.create_task(watched.follow(lambda s: _apply(replica, s))))
        asked = asyncio.create_task(stop.asked.wait())
        try:
            await _until(asked, tasks)
            replica.drain()
            log.info("drain begins", extra={"num_running": engine.num_running})
            if not await stop.drained(
                lambda: engine.num_running == 0, timeout_s=replica.spec.drain_timeout_s
            ):
                log.warning(
                    "stopped with requests running", extra={"num_running": engine.num_running}
                )
            log.info("drain ends", extra={"num_running": engine.num_running})
        finally:
            for task in (*tasks, asked):
                task.cancel()
            await asyncio.gather(*tasks, asked, return_exceptions=True)
    return stop.exit_code


@contextlib.asynccontextmanager
async def _engine_life(engine: EngineClient) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await engine.stop()


async def _until(asked: asyncio.Task[bool], tasks: list[asyncio.Task[None]]) -> None:
    """Wait for `asked`; a task that fails before fails the replica."""
    while not asked.done():
        running = [task for task in tasks if not task.done()]
        await asyncio.wait([asked, *running], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()


async def _start(replica: Replica, engine: EngineClient, args: argparse.Namespace) -> None:
    """Load the model, start the engine, and see a first answer come out."""
    loop = asyncio.get_running_loop()

    def on_phase(phase: str, done: int, total: int) -> None:
        loop.call_soon_threadsafe(setattr, replica, "progress", Progress(phase, done, total))

    spec = replica.spec
    loaded = await _in_thread(lambda: load(spec, profile=args.profile, on_phase=on_phase))
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not look at it again
    gc.set_threshold(20_000, 20, 50)  # a step makes hundreds of objects, and frees them itself
    replica.progress = Progress("first answer")
    engine.start(
        make_scheduler(replica.spec, loaded, policy=args.policy),
        loaded.runner,
        loaded.tokenizer,
        overlap={"auto": None, "always": True, "never": False}[args.overlap],
    )
    replica.attach(
        Served(
            engine,
            loaded.tokenizer,
            loaded.facts,
            loaded.profile.step,
            loaded.defaults,
            loaded.grammars,
            tool_format(spec.model.tool_parser, loaded.tokenizer),
        )
    )
    await asyncio.wait_for(_first_answer(engine, loaded), FIRST_ANSWER_S)
    replica.progress = Progress("ready")
    replica.ready = True
    told = {"model": spec.model.source, "hardware": loaded.facts.hardware}
    log.info("ready", extra={"replica": replica.name, "generation": spec.generation, **told})
    await _watch_ranks(loaded.runner)


class Ranks(Protocol):
    """The processes that a runner computes with, where it does so with others."""

    def on_lost(self, call: Callable[[str], None]) -> None:
        """`call` gets the reason when one is lost, from any thread."""
        ...


async def _watch_ranks(runner: Runner) -> None:
    """Stay until the runner can't go on without a process that it lost; then raise Failed."""
    ranks: Ranks | None = getattr(runner, "ranks", None)
    if ranks is None:
        return
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[str] = loop.create_future()

    def settle(why: str) -> None:
        if not lost.done():
            lost.set_result(why)

    def tell(why: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, why)

    ranks.on_lost(tell)
    raise Failed(await lost)


LOADER = "sloserve-loader"


async def _in_thread(work: Callable[[], Loaded]) -> Loaded:
    """Run `work` in a daemon thread: a replica that is told to stop does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Loaded] = loop.create_future()

    def settle(result: Loaded | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=LOADER, daemon=True).start()
    return await done


async def _first_answer(engine: EngineClient, loaded: Loaded) -> None:
    prompt = loaded.tokenizer.encode("Hello")[: loaded.facts.max_model_len - 2] or [0]
    ask = Generate(
        key="first answer",
        prompt=prompt,
        sampling=SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True),
        promise=Promise(NO_CLASS, ttft_s=FIRST_ANSWER_S, stages=(Stage("decode", 60.0),)),
        arrival_s=engine.clock.now_s(),
    )
    async for event in engine.generate(ask):
        if isinstance(event, Broken):
            raise Failed(f"the first answer failed: {event.message}")


async def _pump(figures: Figures, way_out: WayOut, clock: Clock) -> None:
    while True:
        await asyncio.sleep(PUMP_S)
        figures.pump()
        way_out.settle(clock())


def _apply(replica: Replica, spec: ServiceSpec) -> None:
    """Classes and what goes with them change at once; model and engine need a new process."""
    old = replica.spec
    if (spec.model, spec.engine) != (old.model, old.engine):
        log.warning("model and engine stay as they are until this replica is restarted")
    replica.apply(replace(spec, model=old.model, engine=old.engine))
    log.info(
        "manifest applied",
        extra={"generation": spec.generation, "classes": [c.name for c in spec.classes]},
    )
