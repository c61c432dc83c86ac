"""What all requests of one gateway share."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

import aiohttp

from sloserve.errors import Reason
from sloserve.gateway.keys import Key, Keyring
from sloserve.gateway.ledger import Ledger
from sloserve.gateway.names import ServedNames
from sloserve.gateway.pending import WaitingRoom
from sloserve.gateway.replicas import Replicas
from sloserve.gateway.settings import Settings
from sloserve.gateway.sources import Source
from sloserve.gateway.ticket import Ticket
from sloserve.http.tracing import NO_TRACER, Tracer
from sloserve.routing import Router, RoutingState, route
from sloserve.slo.service import ServiceSpec

log = logging.getLogger(__name__)

MAX_HOPS = 4
SWEEP_S = 1.0


class Open(Protocol):
    """A request that is not ended."""

    ticket: Ticket

    def end(self, by: Reason) -> None:
        """Stop it now."""
        ...


class Core:
    """
    One gateway: the service it serves, its replicas, its counters. `run` keeps it up to date;
    `apply` and `keyring.replace` change it live.
    """

    def __init__(
        self,
        spec: ServiceSpec,
        source: Source,
        *,
        session: aiohttp.ClientSession,
        keys: tuple[Key, ...] | None = None,
        settings: Settings | None = None,
        router: Router = route,
        clock: Callable[[], float] = time.monotonic,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.spec = spec
        self.names = ServedNames(spec)
        self.settings = settings or Settings()
        self.session = session
        self.router = router
        self.clock = clock
        self.tracer = tracer
        self.state = RoutingState()
        self.keyring = Keyring(keys)
        self.ledger = Ledger(spec, clock=clock)
        self.room = WaitingRoom()
        self.replicas = Replicas(
            source,
            service=spec.name,
            session=session,
            changed=self.room.ring,
            clock=clock,
            poll_s=self.settings.poll_s,
        )
        self.open: set[Open] = set()
        """Requests that are not ended."""
        self.draining = False

    def apply(self, spec: ServiceSpec) -> None:
        """A new manifest is in force, from the next request on."""
        self.names.apply(spec, listed=self.replicas.known)
        self.spec = spec
        self.ledger.apply(spec)
        self.room.ring()
        log.info(
            "manifest applied",
            extra={"generation": spec.generation, "classes": [c.name for c in spec.classes]},
        )

    async def run(self) -> None:
        """Keep it going until cancelled: replicas polled, slow readers cut off."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.replicas.run())
            group.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            least_s = self.clock() - self.settings.slow_reader_s
            for exchange in list(self.open):
                since_s = exchange.ticket.sending_since_s
                if since_s is not None and since_s < least_s:
                    exchange.end(Reason.SLOW_READER)

    def check_model(self, name: str) -> None:
        """Raises NotFound for a model that is not served here, nor was until a moment ago."""
        self.names.check(name, staying=self.replicas.staying())

    def may_serve(self, name: str) -> bool:
        """Whether some replica answers to this model name, as far as known, or will soon."""
        replicas = self.replicas
        willing = any(name not in replicas.known[a].refused_models for a in replicas.staying())
        return willing or self.names.is_coming(name, listed=replicas.known)

    @property
    def max_hops(self) -> int:
        """Replicas asked for one request at most."""
        if self.spec.gateway.max_hops is not None:
            return self.spec.gateway.max_hops
        return max(1, min(MAX_HOPS, len(self.replicas.known)))

    @property
    def replicas_coming(self) -> bool:
        """Whether a replica will exist sooner or later."""
        return self.spec.replicas > 0 or self.spec.autoscaling is not None


def new_session(settings: Settings) -> aiohttp.ClientSession:
    """The client towards replicas: no cookies, no proxies, no limit on connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=10),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
        auto_decompress=False,
    )
