"""A real API server, through the official client's asyncio side, with plain dictionaries."""

import json
import os
from collections.abc import Callable
from typing import Any
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import client, config

from sloserve.errors import Failed
from sloserve_operator.api import FIELD_MANAGER, Kind, Obj, Ref
from sloserve_operator.cluster import ApiError, Listed, NotLeading, as_it_is

TIMEOUT_S = 15.0
LEASE_TIMEOUT_S = 4.0
PAGE = 250
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"

Query = list[tuple[str, str]]


class Kube:
    """
    One connection pool. `may_write` is asked before every write but those of the Lease itself.
    """

    def __init__(self, api: Any, *, may_write: Callable[[], bool] = lambda: True) -> None:
        self.api = api
        self.may_write = may_write

    @classmethod
    async def connect(cls, *, num_connections: int) -> "Kube":
        """
        With the pod's service account, else with the kubeconfig that kubectl would use.

        Raises Failed when there is neither.
        """
        settings = client.Configuration()
        settings.connection_pool_maxsize = num_connections
        # Without this every request looks for a netrc file, in a thread of its own.
        settings.client_session_kwargs = {"trust_env": bool(getproxies())}
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            try:
                await config.load_kube_config(
                    config_file=os.environ.get("KUBECONFIG") or None,
                    client_configuration=settings,
                )
            except (config.ConfigException, OSError) as error:
                raise Failed(
                    "no cluster is known: this is no pod, and the kubeconfig "
                    f"(KUBECONFIG, else ~/.kube/config) can't be used: {error}"
                ) from None
        return cls(client.ApiClient(settings))

    async def close(self) -> None:
        """Close the pool."""
        await self.api.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """One object; None when it does not exist."""
        try:
            return _named(kind, await self._ask("GET", kind.path(namespace, name)))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list_all(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str = "",
        fields: str = "",
        keep: Callable[[Obj], Obj] = as_it_is,
    ) -> Listed:
        """All objects of a kind, in pages."""
        items: list[Obj] = []
        query = [("limit", str(PAGE))]
        query += [("labelSelector", labels)] if labels else []
        query += [("fieldSelector", fields)] if fields else []
        version, more = "", ""
        while True:
            page = [*query, ("continue", more)] if more else query
            answer = await self._ask("GET", kind.path(namespace), query=page)
            items += [keep(_named(kind, item)) for item in answer.pop("items")]
            version = version or str(answer["metadata"].get("resourceVersion", ""))
            more = str(answer["metadata"].get("continue") or "")
            if not more:
                return Listed(items, version)

    async def apply(
        self, kind: Kind, obj: Obj, *, sub: str = "", force: bool = True, dry_run: bool = False
    ) -> Obj:
        """Server-side apply."""
        meta = obj["metadata"]
        query = [("fieldManager", FIELD_MANAGER), ("force", "true" if force else "false")]
        query += [("dryRun", "All")] if dry_run else []
        path = kind.path(meta["namespace"], meta["name"], sub=sub)
        return _named(kind, await self._write("PATCH", path, obj, query=query, content=APPLY))

    async def merge(self, kind: Kind, namespace: str, name: str, change: Obj) -> Obj:
        """Merge patch."""
        query, path = [("fieldManager", FIELD_MANAGER)], kind.path(namespace, name)
        return _named(kind, await self._write("PATCH", path, change, query=query, content=MERGE))

    async def delete(self, kind: Kind, namespace: str, ref: Ref, *, uid: str) -> None:
        """Delete this very object, its dependants in the background."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        try:
            await self._write("DELETE", kind.path(namespace, ref.name), body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def create(self, kind: Kind, obj: Obj) -> Obj:
        """POST."""
        path = kind.path(obj["metadata"]["namespace"])
        query = [("fieldManager", FIELD_MANAGER)]
        return _named(kind, await self._write("POST", path, obj, query=query))

    async def replace(self, kind: Kind, obj: Obj) -> Obj:
        """PUT."""
        meta = obj["metadata"]
        path = kind.path(meta["namespace"], meta["name"])
        query = [("fieldManager", FIELD_MANAGER)]
        return _named(kind, await self._write("PUT", path, obj, query=query))

    async def knows(self, kind: Kind) -> bool:
        """Whether discovery lists the kind."""
        root = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.api_version}"
        try:
            found = await self._ask("GET", root)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(resource["name"] == kind.plural for resource in found["resources"])

    async def _write(
        self,
        method: str,
        path: str,
        body: Obj,
        *,
        query: Query | None = None,
        content: str = JSON,
    ) -> Obj:
        if not self.may_write():
            raise NotLeading("the Lease is not held: nothing is written")
        return await self._ask(method, path, query=query, body=body, content=content)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Obj | None = None,
        content: str = JSON,
    ) -> Obj:
        arguments = await self.api.param_serialize(
            method,
            path,
            body=body,
            query_params=query or [],
            auth_settings=["BearerToken"],
            header_params={"Accept": JSON, "Content-Type": content},
        )
        try:
            answer = await self.api.call_api(*arguments, _request_timeout=TIMEOUT_S)
            text = await answer.read()
        except (aiohttp.ClientError, client.ApiException, OSError, TimeoutError) as error:
            raise ApiError(0, f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 400:
            raise _refusal(answer.status, text)
        found = json.loads(text)
        assert isinstance(found, dict)
        return found


def _named(kind: Kind, obj: Obj) -> Obj:
    """With apiVersion and kind, which items of a list lack, and without managedFields."""
    obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
    obj.get("metadata", {}).pop("managedFields", None)
    return obj


def _refusal(status: int, text: bytes) -> ApiError:
    """What an API server's Status says."""
    try:
        told = json.loads(text)
        causes = (told.get("details") or {}).get("causes") or ()
        cause = next((str(c["reason"]) for c in causes if c.get("reason")), "")
        return ApiError(status, str(told.get("message", "")), cause=cause)
    except (ValueError, AttributeError, KeyError, TypeError):
        return ApiError(status, text[:400].decode(errors="replace"))
