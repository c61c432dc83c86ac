"""The processes of one service: as many replicas as wanted, and one gateway."""

import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sloserve.errors import BadInput, Failed, SloserveError
from sloserve.http.serve import handed, port_of, reserve
from sloserve.local.children import Arguments, Child, Launch, Phase
from sloserve.local.state import State

log = logging.getLogger(__name__)

GATEWAY, REPLICA = "gateway", "replica"
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Doors:
    """
    The gateway's sockets, held here from before its first start until it shall stop.

    Nobody else gets the ports, and who calls while a gateway starts again waits instead of being
    refused.
    """

    public: socket.socket
    internal: socket.socket

    def close(self) -> None:
        """Let go of them: from now on only a gateway that runs has them open."""
        self.public.close()
        self.internal.close()


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What the processes are started with."""

    policy: str
    threads: int
    profile: str | None = None
    keys: Path | None = None


class Fleet:
    """
    Starts, counts and stops the children; a child that ends by itself is started again.

    `failure` is set when a child ends before it was ever ready: then starting it again would only
    hide what is wrong.
    """

    def __init__(
        self, state: State, settings: FleetSettings, doors: Doors, *, tell: Callable[[str], None]
    ) -> None:
        self.children: dict[str, Child] = {}
        self.failure: SloserveError | None = None
        self._state = state
        self._settings = settings
        self._doors = doors
        self._internal_port = port_of(doors.internal)
        self._tell = tell
        self._ports: dict[str, int] = {}
        self._was_ready: set[str] = set()
        self._leaving: list[Child] = []

    def start_gateway(self) -> None:
        """Start it; it holds requests until a replica is ready."""
        self._write_list()
        self._start(GATEWAY, self._gateway_arguments, threads=None)

    def scale(self, num_replicas: int) -> None:
        """Start replicas, or drain the last ones."""
        wanted = [f"{REPLICA}-{i}" for i in range(num_replicas)]
        for name in wanted:
            if name not in self.children:
                self._start_replica(name)
        for name in self.replicas().keys() - wanted:
            child = self.children.pop(name)
            child.ask_to_stop()
            self._leaving.append(child)
            self._tell(f"{name} drains and leaves")

    def replicas(self) -> dict[str, Child]:
        """The replicas that shall run, by name."""
        return {name: child for name, child in self.children.items() if name != GATEWAY}

    def address(self, name: str) -> str:
        """`HOST:PORT` of a replica."""
        return f"{HOST}:{self._ports[name]}"

    def names(self) -> dict[str, str]:
        """The names of the replicas that have been started, by address."""
        return {self.address(name): name for name in self.children if name in self._ports}

    def mark_ready(self, name: str) -> None:
        """The child has served: from now on its end is an accident, not a refusal."""
        self._was_ready.add(name)

    def was_ready(self, name: str) -> bool:
        """Whether the child has ever served."""
        return name in self._was_ready

    def forget_gone(self) -> None:
        """Take those that left off the gateway's list: it knew them as draining until now."""
        gone = [child for child in self._leaving if child.phase is Phase.ENDED]
        for child in gone:
            self._leaving.remove(child)
            if child.name not in self.children:
                self._ports.pop(child.name, None)
            self._tell(f"{child.name} has left")
        if gone:
            self._write_list()

    async def drain(self, *, timeout_s: float) -> None:
        """The gateway first, so that its streams still have replicas; then the replicas."""
        self._doors.close()
        await _stop([c for n, c in self.children.items() if n == GATEWAY], timeout_s)
        await _stop([*self.replicas().values(), *self._leaving], timeout_s)

    async def kill(self) -> None:
        """Everything, at once."""
        everybody = [*self.children.values(), *self._leaving]
        for child in everybody:
            child.kill()
        for child in everybody:
            await child.wait()

    def _start_replica(self, name: str) -> None:
        self._start(name, lambda: self._replica_arguments(name), threads=self._settings.threads)

    def _start(self, name: str, arguments: Callable[[], Arguments], *, threads: int | None) -> None:
        launch = Launch(arguments, self._state.log_path(name), threads=threads)
        self.children[name] = Child(name, launch, ended=lambda code: self._ended(name, code))

    def _gateway_arguments(self) -> Arguments:
        settings = self._settings
        public, internal = self._doors.public.dup(), self._doors.internal.dup()
        words = ["gateway", "--config", str(self._state.spec_path)]
        words += ["--listen", handed(public), "--internal", handed(internal)]
        words += ["--replicas", str(self._state.replicas_path.absolute())]
        if settings.keys is not None:
            words += ["--keys", str(settings.keys)]
        return Arguments(words, (public, internal))

    def _replica_arguments(self, name: str) -> Arguments:
        sock = reserve(HOST, 0)
        self._ports[name] = port_of(sock)
        self._write_list()
        settings = self._settings
        words = ["replica", "--config", str(self._state.spec_path), "--name", name]
        words += ["--listen", handed(sock), "--policy", settings.policy]
        if settings.profile is not None:
            words += ["--profile", settings.profile]
        return Arguments(words, (sock,))

    def _write_list(self) -> None:
        replicas = [f"{HOST}:{port}" for port in self._ports.values()]
        self._state.write_replicas(replicas)
        self._state.write_targets([f"{HOST}:{self._internal_port}", *replicas])

    def _ended(self, name: str, code: int) -> None:
        child = self.children.get(name)
        words = child.last_words() if child else ""
        if name not in self._was_ready and self.failure is None:
            kind = BadInput if code == 2 else Failed
            message = words.removeprefix("sloserve: ") or f"exit code {code}"
            self.failure = kind(f"{name}: {message} (log: {self._state.log_path(name)})")
            return
        self._tell(f"{name} ended (code {code}) and is started again: {words}")


async def _stop(children: list[Child], timeout_s: float) -> None:
    for child in children:
        child.ask_to_stop()
    for child in children:
        if not await child.wait(timeout_s=timeout_s):
            log.warning("a child did not end in time, killed", extra={"child": child.name})
            child.kill()
            with contextlib.suppress(ProcessLookupError):
                await child.wait()
