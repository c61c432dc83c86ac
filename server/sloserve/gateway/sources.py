"""Who the replicas are: a list, a watched file, or a name that is resolved again and again."""

import asyncio
import ipaddress
import logging
import re
import socket
from pathlib import Path
from typing import Protocol

from sloserve.errors import BadInput

log = logging.getLogger(__name__)

DNS_PERIOD_S = 1.0
FILE_PERIOD_S = 0.25

Endpoint = tuple[str, int]
"""A host (name or address) and a port."""


class Source(Protocol):
    """Where the list of replicas comes from."""

    period_s: float
    """Seconds between two looks."""

    async def look(self) -> list[Endpoint] | None:
        """Addresses now; None: it can't be told, the last ones stay."""
        ...


def make_source(text: str) -> Source:
    """
    The source that `--replicas` names.

    An existing file, or anything with a slash: a file of `HOST:PORT` entries. Else `HOST:PORT`
    entries separated by commas; a host that is a name stands for all its addresses, and is
    resolved every second (a headless Service lists pods before they are ready).
    """
    if "/" in text.replace("://", "") or Path(text).is_file():
        return FileSource(Path(text))
    return ListSource(parse_endpoints(text, field="--replicas"))


def parse_endpoints(text: str, *, field: str) -> list[Endpoint]:
    """`HOST:PORT` entries separated by commas or white space; `#` starts a comment."""
    lines = [line.partition("#")[0] for line in text.splitlines()]
    return [_endpoint(entry, field) for entry in re.split(r"[\s,]+", " ".join(lines)) if entry]


def _endpoint(entry: str, field: str) -> Endpoint:
    host, _, port = entry.removeprefix("http://").rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"got {entry[:80]!r}, allowed: HOST:PORT, port 1 to 65535", field=field)
    return host, int(port)


class ListSource:
    """A fixed list, whose names are resolved."""

    period_s = DNS_PERIOD_S

    def __init__(self, entries: list[Endpoint]) -> None:
        self._entries = entries

    async def look(self) -> list[Endpoint] | None:
        """Every address of every entry."""
        found: dict[Endpoint, None] = {}
        for host, port in self._entries:
            addresses = await resolve(host)
            if addresses is None:
                return None
            found.update({(address, port): None for address in addresses})
        return list(found)


class FileSource:
    """A file of `HOST:PORT` entries; a missing file is an empty list."""

    period_s = FILE_PERIOD_S

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._list = ListSource([])

    async def look(self) -> list[Endpoint] | None:
        """The addresses in the file as it is now; bad content keeps the last ones."""
        try:
            stat = self._path.stat()
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if mark != self._seen:
                self._list = ListSource(
                    parse_endpoints(self._path.read_text("utf-8"), field=str(self._path))
                )
                self._seen = mark
        except FileNotFoundError:
            self._seen, self._list = None, ListSource([])
        except (OSError, UnicodeDecodeError, BadInput) as error:
            log.error("can't read the list of replicas", extra={"error": str(error)})
            return None
        return await self._list.look()


async def resolve(host: str) -> list[str] | None:
    """
    The addresses of a name, of one family (a pod with two would count twice), IPv4 if any.

    [] when there is no such name now; None when the resolver can't tell.
    """
    try:
        ipaddress.ip_address(host)
        return [host]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return None
        return []
    except (OSError, UnicodeError) as error:
        log.warning("can't resolve a name", extra={"host": host, "error": str(error)})
        return None
    of_v4 = sorted({str(a[4][0]) for a in found if a[0] == socket.AF_INET})
    return of_v4 or sorted({str(a[4][0]) for a in found})
