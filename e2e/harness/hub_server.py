"""
A small model hub: what huggingface_hub asks of one, over the files of the model that ships.

It runs in a pod of the engine's image. `org/private` is for those with the token in TOKEN,
`org/open` for everybody. Of files larger than LARGE half is sent at once, then a byte a second,
until somebody POSTs to /let-go: whoever watches a download has all the time to see it.
"""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

MODELS = ("org/open", "org/private")
COMMIT = "c" * 40
TOKEN = os.environ.get("TOKEN", "")
LARGE = 2**20
LET_GO = threading.Event()
PORT = 8000


def served() -> dict[str, bytes]:
    """The files of every model, by name."""
    folder = Path(str(files("sloserve.model") / "tiny"))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class Hub(BaseHTTPRequestHandler):
    """One request; `FILES` are what `served` found."""

    protocol_version = "HTTP/1.1"
    FILES: dict[str, bytes] = {}  # noqa: RUF012

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        if self.path != "/let-go":
            return self._refuse(404, {})
        LET_GO.set()
        return self._json({"status": "ok"}, with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        parts = [part for part in urlsplit(self.path).path.split("/") if part]
        asked_api = parts[:2] == ["api", "models"]
        model, rest = "/".join((parts[2:] if asked_api else parts)[:2]), parts[2 + 2 * asked_api :]
        if not parts:
            self._json({"status": "ok"}, with_body)
        elif model not in MODELS:
            self._refuse(404, {"X-Error-Code": "RepoNotFound"})
        elif model == "org/private" and (why := self._unknown()):
            self._refuse(401, why)
        elif asked_api and rest[:1] == ["tree"]:
            self._json([entry(name, data) for name, data in self.FILES.items()], with_body)
        elif asked_api:
            siblings = [{"rfilename": name} for name in self.FILES]
            self._json({"id": model, "sha": COMMIT, "siblings": siblings}, with_body)
        elif rest[:1] == ["resolve"] and (name := "/".join(rest[2:])) in self.FILES:
            self._file(self.FILES[name], with_body)
        else:
            self._refuse(404, {"X-Error-Code": "EntryNotFound"})

    def _unknown(self) -> dict[str, str]:
        """Why whoever asks may not; empty when welcome. As the public hub words it."""
        given = self.headers.get("Authorization")
        if given is None:
            return {"X-Error-Code": "RepoNotFound"}
        if given != f"Bearer {TOKEN}":
            return {"X-Error-Message": "Invalid credentials in Authorization header"}
        return {}

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": "0"})

    def _json(self, value: object, with_body: bool) -> None:
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if with_body:
            self.wfile.write(body)

    def _file(self, data: bytes, with_body: bool) -> None:
        start = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and asked.endswith("-"):
            start = int(asked[len("bytes=") : -1])
        told = {"ETag": f'"{etag(data)}"', "Accept-Ranges": "bytes"}
        told |= {"Content-Length": str(len(data) - start)}
        if start:
            told |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self._head(206 if start else 200, told)
        if not with_body:
            return
        kept = len(data) // 2 if len(data) > LARGE else 0
        sent = max(start, len(data) - kept)
        self.wfile.write(data[start:sent])
        while sent < len(data) and not LET_GO.wait(1.0):
            self.wfile.write(data[sent : sent + 1])
            sent += 1
        self.wfile.write(data[sent:])

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.end_headers()


def etag(data: bytes) -> str:
    """What names this content."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def entry(name: str, data: bytes) -> dict[str, object]:
    """A file as the hub lists it."""
    return {"type": "file", "path": name, "size": len(data), "oid": etag(data)}


if __name__ == "__main__":
    Hub.FILES = served()
    ThreadingHTTPServer(("", PORT), Hub).serve_forever()
