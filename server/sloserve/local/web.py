"""The status page's HTTP side: one page, its style and its script, and what they show as JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from starlette.types import Receive, Scope, Send

from sloserve.http.answers import encode
from sloserve.local.picture import Json

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
METHODS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out."""

    status: int
    body: bytes
    media_type: str = "text/plain; charset=utf-8"


class Page:
    """
    The ASGI application; `look` gives what `/status.json` tells. It only reads.

    Listening on a loopback `host`, it answers only those who call it by a loopback name: a site
    that has its own name point here (DNS rebinding) reads nothing.
    """

    def __init__(self, look: Callable[[], Json], *, host: str) -> None:
        self._look = look
        self._names = LOOPBACK if host in LOOPBACK else ()
        folder = resources.files(__package__).joinpath("page")
        self._files = {
            path: Reply(200, folder.joinpath(name).read_bytes(), media_type)
            for path, (name, media_type) in FILES.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        reply = self.reply(scope["method"], scope["path"], host=host.decode("latin-1"))
        headers = {**HEADERS, "content-type": reply.media_type,
                   "content-length": str(len(reply.body))}  # fmt: skip
        if reply.status == 405:
            headers["allow"] = ", ".join(METHODS)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        body = b"" if scope["method"] == "HEAD" else reply.body
        await send({"type": "http.response.body", "body": body})

    def reply(self, method: str, path: str, *, host: str) -> Reply:
        """The answer to a request that called this server `host`."""
        if self._names and _without_port(host) not in self._names:
            words = f"the status page is for {LOOPBACK[0]} and {LOOPBACK[1]}, not for {host!r}\n"
            return Reply(421, words.encode())
        if path != "/status.json" and path not in self._files:
            return Reply(404, b"not found; there are / and /status.json\n")
        if method not in METHODS:
            return Reply(405, b"this page only reads: GET\n")
        if path == "/status.json":
            return Reply(200, encode(self._look()), "application/json")
        return self._files[path]


def _without_port(host: str) -> str:
    """`127.0.0.1:8081` and `[::1]:8081` without the port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() and not name.endswith(":") else host).lower()
