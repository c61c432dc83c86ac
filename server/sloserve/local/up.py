"""`sloserve up`: one manifest, served by processes on this machine."""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console

from sloserve.errors import BadInput, Failed
from sloserve.http.config import load_manifest
from sloserve.http.serve import (
    Listener,
    Stop,
    bind,
    parse_listen,
    port_of,
    reserve,
    serving,
    url_of,
)
from sloserve.http.watch import Watched
from sloserve.local.decide import edit, num_replicas, share_out
from sloserve.local.fleet import GATEWAY, HOST, REPLICA, Doors, Fleet, FleetSettings
from sloserve.local.lookout import Lookout
from sloserve.local.picture import Json, picture
from sloserve.local.rules import to_yaml
from sloserve.local.scene import Scene
from sloserve.local.state import State
from sloserve.local.view import LiveView, PlainView
from sloserve.local.web import Page
from sloserve.rules import rules_file, service_groups
from sloserve.slo import ServiceSpec

TICK_S = 0.5
EXTRA_DRAIN_S = 10.0
PAGE = (HOST, 8081)
NO_PAGE = "off"
SIMULATED = "builtin://sim"
BYTES_FROM = 100_000
"""A phase with a smaller total counts steps, not bytes."""


@dataclass(frozen=True, slots=True)
class UpSettings:
    """The command line of `sloserve up`."""

    file: Path
    policy: str
    host: str
    port: int
    internal_port: int
    status_page: str | None
    """`HOST:PORT`, a port on loopback, `off`, or None: 8081, or a free one when that is taken."""
    keys: Path | None
    profile: str | None
    state: Path | None
    plain: bool


def run_up(args: argparse.Namespace) -> int:
    """Serve until told to stop; the exit code. Raises BadInput and Failed, nothing left behind."""
    settings = UpSettings(
        file=args.file,
        policy=args.policy,
        host=args.host,
        port=args.port,
        internal_port=args.internal_port,
        status_page=args.status_page,
        keys=args.keys,
        profile=args.profile,
        state=args.state,
        plain=args.plain or not sys.stdout.isatty(),
    )
    return asyncio.run(_run(settings))


async def _run(settings: UpSettings) -> int:
    manifest = Watched(settings.file, load_manifest)
    for flag, port in (("--port", settings.port), ("--internal-port", settings.internal_port)):
        if not 0 <= port <= 65535:
            raise BadInput(f"is {port}; must be from 0 to 65535", field=flag)
    with (
        contextlib.closing(bind(settings.host, settings.port)) as public,
        contextlib.closing(reserve(HOST, settings.internal_port)) as internal,
    ):
        page = bind_page(settings.status_page)
        state = State(settings.state or Path(".sloserve") / manifest.value.name)
        stop = Stop()
        stop.install()
        with state.locked():
            async with aiohttp.ClientSession() as session:
                up = Up(settings, Doors(public, internal), manifest, state, stop, session)
                async with up.shown(page):
                    await up.run()
    return stop.exit_code


def bind_page(listen: str | None) -> socket.socket | None:
    """
    Where the status page listens; None: nowhere.

    A port that was asked for must be free (Failed says so); the usual one may be taken by the
    page of another service.
    """
    if listen == NO_PAGE:
        return None
    if listen is None:
        with contextlib.suppress(Failed):
            return bind(*PAGE)
        return bind(HOST, 0)
    try:
        return bind(*parse_listen(f"{HOST}:{listen}" if listen.isdigit() else listen))
    except BadInput as error:
        text = f"{error.message}; or a port on {HOST}, or {NO_PAGE}"
        raise BadInput(text, field="--status-page") from None


class Up:
    """One run of the service, from the first process to the last."""

    def __init__(
        self,
        settings: UpSettings,
        doors: Doors,
        manifest: Watched[ServiceSpec],
        state: State,
        stop: Stop,
        session: aiohttp.ClientSession,
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._state = state
        self._stop = stop
        self._session = session
        self._spec = manifest.value
        self._num_parts = num_replicas(self._spec)
        self._simulated = self._spec.model.source.startswith(SIMULATED)
        self._doors = doors
        self._url = f"http://{settings.host}:{port_of(doors.public)}"
        self._scene = Scene(
            f"{self._spec.name} at {self._url}/v1", service=self._spec.name, url=self._url
        )
        internal_url = f"http://{HOST}:{port_of(doors.internal)}"
        self._lookout = Lookout(session, self._scene, internal_url=internal_url)
        console = Console()
        view = PlainView if settings.plain else LiveView
        self._view: PlainView | LiveView = view(console, self._scene)
        self._fleet: Fleet | None = None
        self._page_url = ""
        self._greeted = False
        self._up: set[str] = set()
        """Replicas that are ready now."""

    @contextlib.asynccontextmanager
    async def shown(self, sock: socket.socket | None) -> AsyncIterator[None]:
        """Serve the status page on `sock` while the block runs."""
        if sock is None:
            yield
            return

        def look() -> Json:
            now_s = time.monotonic()
            self._lookout.seen(now_s)
            return picture(self._scene, now_s=now_s, wall_s=time.time())

        self._page_url = url_of(sock)
        self._scene.title += f", status page at {self._page_url}"
        page = Page(look, host=str(sock.getsockname()[0]))
        async with serving([Listener(page, sock)], grace_s=1.0):
            yield

    async def run(self) -> None:
        """Start, watch until told to stop, drain. Raises the failure of a child's first start."""
        self._view.start()
        try:
            if self._page_url:
                self._tell(f"status page: {self._page_url}")
            self._write_spec()
            fleet = self._fleet = Fleet(
                self._state, self._fleet_settings(), self._doors, tell=self._tell
            )
            fleet.start_gateway()
            await self._watch(fleet)
        finally:
            self._view.stop()
            if self._fleet is not None:
                await self._leave(self._fleet)

    async def _watch(self, fleet: Fleet) -> None:
        while not self._stop.asked.is_set():
            if fleet.failure is not None:
                raise fleet.failure
            fleet.scale(self._num_wanted(fleet))
            await self._look(fleet)
            self._follow_manifest()
            fleet.forget_gone()
            self._view.show(time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.asked.wait(), TICK_S)

    async def _look(self, fleet: Fleet) -> None:
        """Ask the gateway how everybody feels, and those who load how far they are."""
        names = self._scene.names = fleet.names()
        self._scene.starting = {a for a, name in names.items() if not fleet.was_ready(name)}
        overview = await self._lookout.look(time.monotonic())
        if overview is None:
            self._scene.progress[GATEWAY] = "starting"
            return
        fleet.mark_ready(GATEWAY)
        self._scene.progress.pop(GATEWAY, None)
        states = {row.address: row for row in overview.replicas}
        for name in fleet.replicas():
            row = states.get(fleet.address(name))
            ready = row is not None and row.state == "ready"
            if ready and name not in self._up:
                self._tell(f"{name} is ready at {fleet.address(name)}")
                self._up.add(name)
                fleet.mark_ready(name)
            if ready:
                self._scene.progress.pop(name, None)
            else:
                self._up.discard(name)
                self._scene.progress[name] = await self._phase(fleet.address(name))
        if not self._greeted and overview.num_ready:
            self._greet()

    async def _phase(self, address: str) -> str:
        """What a replica that is not ready is doing."""
        timeout = aiohttp.ClientTimeout(total=1.0)
        try:
            async with self._session.get(f"http://{address}/ready", timeout=timeout) as response:
                told = await response.json(content_type=None)
            words = str(told.get("phase") or told.get("status") or "starting")
            done, total = int(told.get("bytes_done") or 0), int(told.get("bytes_total") or 0)
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError):
            return "starting"
        if not total:
            return words
        if total < BYTES_FROM:
            return f"{words}: {done} of {total}"
        return f"{words}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"

    def _num_wanted(self, fleet: Fleet) -> int:
        """
        Replicas that shall run now.

        The first one measures the machine's step times, unless they are known, and needs the
        machine for itself while it does; the others find what it wrote.
        """
        known = self._settings.profile is not None
        if known or self._simulated or fleet.was_ready(f"{REPLICA}-0"):
            return num_replicas(self._spec)
        return 1

    def _follow_manifest(self) -> None:
        if not self._manifest.poll():
            return
        change = edit(self._spec, self._manifest.value)
        for field in change.needs_restart:
            self._tell(f"{field} changed: stop and start `sloserve up` to apply it")
        if change.spec == self._spec:
            return
        self._spec = change.spec
        self._write_spec()
        self._tell(f"generation {self._spec.generation}: " + ", ".join(change.applied))

    def _greet(self) -> None:
        self._greeted = True
        auth = " -H 'authorization: Bearer YOUR-KEY'" if self._settings.keys else ""
        body = (
            f'{{"model": "{self._spec.model.served_name}", "stream": true, "max_tokens": 60, '
            '"messages": [{"role": "user", "content": "What does json.dumps do?"}]}'
        )
        self._scene.note(f"{self._spec.name} is ready", now_s=time.monotonic())
        self._view.tell(f"{self._spec.name} is ready. Try:")
        self._view.tell(
            f"  curl -N {self._url}/v1/chat/completions{auth} "
            f"-H 'content-type: application/json' -H 'x-slo-class: {self._spec.default_class}' "
            f"-d '{body}'"
        )
        self._view.tell("Ctrl-C drains and stops; a second Ctrl-C stops at once.")

    async def _leave(self, fleet: Fleet) -> None:
        if self._stop.asked.is_set() and fleet.failure is None:
            self._scene.draining = True
            self._tell("draining: answers under way finish; Ctrl-C again stops at once")
            timeout_s = self._spec.drain_timeout_s + EXTRA_DRAIN_S
            drained = asyncio.ensure_future(fleet.drain(timeout_s=timeout_s))
            at_once = asyncio.ensure_future(self._stop.at_once.wait())
            looking = asyncio.ensure_future(self._look_on())
            await asyncio.wait([drained, at_once], return_when=asyncio.FIRST_COMPLETED)
            for task in (drained, at_once, looking):
                task.cancel()
        await fleet.kill()
        self._view.tell("stopped")

    async def _look_on(self) -> None:
        """Keep the page true while the service drains."""
        while True:
            await self._lookout.look(time.monotonic())
            await asyncio.sleep(TICK_S)

    def _resolved(self) -> ServiceSpec:
        return share_out(self._spec, num_cores=_num_cores(), num_parts=self._num_parts)

    def _write_spec(self) -> None:
        self._state.write_spec(self._resolved())
        self._state.write_rules(to_yaml(rules_file(service_groups(self._spec))))

    def _fleet_settings(self) -> FleetSettings:
        threads = self._resolved().engine.threads
        assert threads is not None  # share_out decides
        return FleetSettings(
            policy=self._settings.policy,
            threads=threads,
            profile=self._settings.profile,
            keys=self._settings.keys.absolute() if self._settings.keys else None,
        )

    def _tell(self, line: str) -> None:
        self._scene.note(line, now_s=time.monotonic())
        self._view.tell(line)


def _num_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
