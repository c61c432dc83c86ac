"""Kopf's part: watch services, children and pods, and feed what it hears to the operator."""

from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from sloserve_operator import names
from sloserve_operator.api import CHILD_KINDS, GROUP, POD, SERVICE, Kind, Obj

WATCHED = (*(kind for kind in CHILD_KINDS.values() if not kind.optional), POD)
"""Children that every cluster knows. Objects of optional kinds are seen at each resync only."""

PAGE = 100
"""Objects that are listed at once."""

Heard = Callable[[Kind, str | None, Obj], None]
"""Called with the kind, the type of the event (None: it was listed) and the object."""


def make_registry(
    heard: Heard, *, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> kopf.OperatorRegistry:
    """
    Handlers that only pass on what happens; `start` runs before anything is watched.

    No create, update or delete handlers, timers, daemons or indices: nothing is written to the
    services by Kopf, there is no finalizer, and a dead operator blocks no deletion.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def startup(**_: Any) -> None:
        await start()

    @kopf.on.cleanup(registry=registry)
    async def cleanup(**_: Any) -> None:
        await stop()

    @kopf.on.login(registry=registry, retries=3)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    for kind in (SERVICE, *WATCHED):
        _listen(registry, kind, heard)
    return registry


def _listen(registry: kopf.OperatorRegistry, kind: Kind, heard: Heard) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)
    async def event(event: Any, **_: Any) -> None:
        obj: Obj = dict(event["object"])
        obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
        heard(kind, event["type"], obj)


class NoDiffBase(kopf.DiffBaseStorage):
    """Nobody asks what changed since the last handling: no copy of every object is made."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of an object matters."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


def make_settings(*, clusterwide: bool, selector: str) -> kopf.OperatorSettings:
    """Kopf as this operator wants it; the reasons are measured ones."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True  # a Lease decides; peering freezes equals
    settings.posting.enabled = False  # Kopf makes a new Event object per message
    settings.scanning.disabled = not clusterwide  # needs no right on namespaces and CRDs then
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 270
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = [1, 1, 2, 3, *[5] * 8]
    settings.queueing.idle_timeout = 0.05  # a worker holds its object, and has nothing to remember
    settings.watching.chunk_size = PAGE  # whole lists are the peak of an operator's memory
    settings.queueing.exit_timeout = 0.1  # nothing is lost with an event: hand the Lease over
    settings.persistence.finalizer = f"{GROUP}/finalizer"  # none is ever set
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = NoDiffBase()
    for kind in WATCHED:
        settings.watching.label_selectors[kind.plural] = names.OURS
    if selector:
        settings.watching.label_selectors[SERVICE.plural] = selector
    return settings
