"""What the operator asks of an API server: a few verbs, over plain objects."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sloserve.errors import SloserveError
from sloserve_operator.api import Kind, Obj, Ref


class ApiError(SloserveError):
    """The API server said no; `status` is HTTP's."""

    def __init__(self, status: int, message: str, *, cause: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.cause = cause

    @property
    def terminating(self) -> bool:
        """The namespace is being deleted: there is nothing left to do in it."""
        return self.cause == "NamespaceTerminating"

    @property
    def refuses(self) -> bool:
        """
        The object itself is wrong: asking again changes nothing.

        An unknown field comes as HTTP 500 from server-side apply.
        """
        typed = self.status == 500 and "typed patch" in self.message
        return self.status in (400, 422) or typed or (self.status == 403 and not self.terminating)


class NotLeading(SloserveError):
    """This process does not hold the Lease: it must not write."""


class Listed(NamedTuple):
    """A complete list, and the resource version it is of."""

    items: list[Obj]
    version: str


def as_it_is(obj: Obj) -> Obj:
    """The object."""
    return obj


class Cluster(Protocol):
    """An API server. Every method raises ApiError; writes raise NotLeading without the Lease."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """One object; None when it does not exist."""
        ...

    async def list_all(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str = "",
        fields: str = "",
        keep: Callable[[Obj], Obj] = as_it_is,
    ) -> Listed:
        """
        All objects of a kind, paged; each with its apiVersion and kind.

        What `keep` makes of each is listed: a page is forgotten before the next one is read.
        """
        ...

    async def apply(
        self, kind: Kind, obj: Obj, *, sub: str = "", force: bool = True, dry_run: bool = False
    ) -> Obj:
        """Server-side apply; what came of it. Without `force` a conflict is an ApiError 409."""
        ...

    async def merge(self, kind: Kind, namespace: str, name: str, change: Obj) -> Obj:
        """
        Merge patch. With `metadata.uid` in it only that very object is changed: else ApiError 409.
        """
        ...

    async def delete(self, kind: Kind, namespace: str, ref: Ref, *, uid: str) -> None:
        """Delete this very object; nothing happens when it is gone."""
        ...

    async def create(self, kind: Kind, obj: Obj) -> Obj:
        """POST; ApiError 409 when it exists."""
        ...

    async def replace(self, kind: Kind, obj: Obj) -> Obj:
        """PUT with the object's resourceVersion; ApiError 409 when somebody was faster."""
        ...

    async def knows(self, kind: Kind) -> bool:
        """Whether the cluster has this kind."""
        ...
